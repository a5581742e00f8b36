// Elements from descriptions: h() describes, render() changes what differs, so that focus, selection and scrolling stay.
// Text only ever becomes text nodes and attributes: nothing here, or in any other file, reads a string as HTML.

const SVG = "http://www.w3.org/2000/svg";
const PROPERTIES = new Set(["value", "checked", "disabled", "open", "indeterminate"]);

// Describe an element. Children may be nested lists; null, undefined, false and "" are left out.
export function h(tag, props, ...children) {
  return { tag, props: props ?? {}, children: flatten(children, []) };
}

function flatten(items, found) {
  for (const item of items) {
    if (Array.isArray(item)) flatten(item, found);
    else if (item === null || item === undefined || item === false || item === "") continue;
    else if (typeof item === "object") found.push(item);
    else if (typeof found.at(-1) === "string") found.push(found.pop() + item);
    else found.push(String(item));
  }
  return found;
}

// Make the children of an element what `content` describes. Elements with a `key` keep their identity when they move.
export function render(parent, content) {
  update(parent, flatten([content], []));
}

function update(parent, wanted) {
  const keyed = new Map();
  for (const node of parent.childNodes) if (node.etlKey !== undefined) keyed.set(node.etlKey, node);
  let at = parent.firstChild;
  for (const one of wanted) {
    if (typeof one === "string") {
      if (at?.nodeType === Node.TEXT_NODE) {
        if (at.data !== one) at.data = one;
        at = at.nextSibling;
      } else parent.insertBefore(document.createTextNode(one), at);
      continue;
    }
    const { key } = one.props;
    let node = key === undefined ? (at?.etlKey === undefined ? at : null) : keyed.get(key);
    if (node?.localName !== one.tag) node = null;
    if (node === null || node === undefined) {
      const isSvg = one.tag === "svg" || parent.namespaceURI === SVG;
      node = isSvg ? document.createElementNS(SVG, one.tag) : document.createElement(one.tag);
      node.etlKey = key;
      node.etlProps = {};
    }
    if (node === at) at = at.nextSibling;
    else parent.insertBefore(node, at);
    apply(node, one.props);
    update(node, one.children);
  }
  while (at) {
    const next = at.nextSibling;
    at.remove();
    at = next;
  }
}

function apply(node, props) {
  const before = node.etlProps;
  for (const name of new Set([...Object.keys(before), ...Object.keys(props)])) {
    const value = props[name];
    if (name === "key" || value === before[name]) continue;
    if (name.startsWith("on")) node[name] = value ?? null;
    else if (PROPERTIES.has(name) && node.localName !== "progress") node[name] = value ?? "";
    else if (value === undefined || value === null || value === false) node.removeAttribute(name);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.etlProps = props;
}
