// All words of the page, English and Korean. {0}, {1}: what is filled in; {1?a:b}: a if that number is 1, else b.

const TEXTS = {
  // the frame
  now: ["Now", "현황"],
  letters: ["Dead letters", "실패 작업"],
  find: ["Find", "찾기"],
  audit: ["Audit", "감사 기록"],
  pages: ["Pages", "페이지"],
  skip: ["Skip to content", "본문으로 건너뛰기"],
  language: ["Language", "언어"],
  live: ["live", "실시간"],
  "stale-since": ["stale since {0}", "{0}부터 갱신되지 않음"],
  "stale-kafka": ["Kafka does not answer: what is shown may be old", "Kafka가 응답하지 않습니다. 표시된 내용이 오래되었을 수 있습니다"],
  "stale-cut": ["No connection to the API: what is shown is old", "API와 연결이 끊겼습니다. 표시된 내용은 이전 정보입니다"],
  connecting: ["connecting …", "연결 중 …"],
  loading: ["Loading …", "불러오는 중 …"],
  unreachable: ["The API does not answer.", "API가 응답하지 않습니다."],
  "log-out": ["Log out", "로그아웃"],
  "role-viewer": ["viewer", "조회자"],
  "role-operator": ["operator", "운영자"],
  "role-admin": ["admin", "관리자"],
  "needs-role": ["This needs the role {0}", "{0} 권한이 필요합니다"],
  unseen: ["invisible character {0}", "보이지 않는 문자 {0}"],
  "no-page": ["There is no such page.", "그런 페이지가 없습니다."],
  // login
  login: ["Log in", "로그인"],
  token: ["Token", "토큰"],
  "login-hint": [
    "The first start of the API prints a login link in its log. Or ask an admin for a token.",
    "API를 처음 시작하면 로그에 로그인 링크가 출력됩니다. 또는 관리자에게 토큰을 요청하세요.",
  ],
  // times
  seconds: ["{0} s", "{0}초"],
  minutes: ["{0} min", "{0}분"],
  hours: ["{0} h", "{0}시간"],
  days: ["{0} d", "{0}일"],
  ago: ["{0} ago", "{0} 전"],
  "just-now": ["now", "지금"],
  in: ["in {0}", "{0} 후"],
  "per-second": ["{0}/s", "{0}/초"],
  // now
  "all-well": ["All is well: {0} in 24 h, nothing needs you.", "정상입니다. 24시간 동안 {0} 전송, 조치할 일이 없습니다."],
  "files-bytes": ["{0} {2?file:files} ({1})", "파일 {0}개({1})"],
  "needs-you": ["{0} {1?thing needs:things need} you.", "조치가 필요한 일이 {0}건 있습니다."],
  "not-known": ["Not known: what is shown is old.", "알 수 없음: 표시된 내용은 이전 정보입니다."],
  needs: ["Needs you", "조치 필요"],
  "needs-nothing": ["Nothing. What needs somebody would be here, the worst first.", "없습니다. 조치할 일이 생기면 심각한 순서로 여기에 표시됩니다."],
  "needs-more": ["and {0} more", "그 외 {0}건"],
  "need-no-consumer": ["No consumer runs: nothing is transferred", "실행 중인 컨슈머가 없어 전송이 이루어지지 않습니다"],
  "need-login-refused": ["{0} refuses the login", "{0} 서버가 로그인을 거부합니다"],
  "need-server-down": ["{0} is down", "{0} 서버가 응답하지 않습니다"],
  "need-process-silent": ["Process {0} is silent", "{0} 프로세스에서 소식이 없습니다"],
  "need-backlog-old": ["The oldest job of {0} waits for too long", "{0}의 가장 오래된 작업이 너무 오래 기다리고 있습니다"],
  "need-transfer-stalled": ["Transfer stands still: {0}", "전송이 멈춰 있습니다: {0}"],
  "need-dead-letters": ["Dead letters: {0}", "실패 작업: {0}"],
  "need-settings-differ": ["Consumers of {0} have different servers in their settings", "{0} 컨슈머들의 서버 설정이 서로 다릅니다"],
  "need-on-hold": ["{0} is on hold", "{0} 보류 중"],
  since: ["since {0}", "{0} 시작"],
  waits: ["{0} {1?job waits:jobs wait}, none lost", "작업 {0}개 대기 중, 유실 없음"],
  look: ["Look", "보기"],
  night: ["The last 24 hours", "지난 24시간"],
  "night-told": ["{0} done and {1} failed in 24 hours, by quarters of an hour", "24시간 동안 완료 {0}, 실패 {1} (15분 단위)"],
  "night-empty": ["Nothing was finished in the last 24 hours.", "지난 24시간 동안 끝난 작업이 없습니다."],
  "night-column": ["{0}: {1} done, {2} failed, {3}", "{0}: 완료 {1}, 실패 {2}, {3}"],
  "as-table": ["as a table", "표로 보기"],
  at: ["At", "시각"],
  flight: ["In flight", "전송 중"],
  "flight-empty": ["Nothing is being transferred.", "전송 중인 파일이 없습니다."],
  "flight-more": ["{0} of {1} shown", "{1}건 중 {0}건 표시"],
  file: ["File", "파일"],
  to: ["To", "대상"],
  progress: ["Progress", "진행"],
  rate: ["Rate", "속도"],
  left: ["Left", "남은 시간"],
  "still-for": ["still for {0}", "{0}째 멈춤"],
  attempt: ["Attempt", "시도"],
  process: ["Process", "프로세스"],
  "phase-reading": ["opening", "여는 중"],
  "phase-streaming": ["streaming", "전송 중"],
  "phase-verifying": ["verifying", "검증 중"],
  "phase-publishing": ["publishing", "게시 중"],
  "phase-source-action": ["source action", "원본 처리 중"],
  servers: ["Servers", "서버"],
  server: ["Server", "서버"],
  "servers-empty": ["No settings and no process name a server.", "설정이나 프로세스에 등록된 서버가 없습니다."],
  state: ["State", "상태"],
  up: ["up", "정상"],
  down: ["down", "중단"],
  probed: ["being probed", "확인 중"],
  "on-hold": ["on hold", "보류"],
  "next-try": ["next try {0}", "다음 시도 {0}"],
  jobs: ["Jobs", "작업"],
  "jobs-rate": ["Jobs/s", "작업/초"],
  "bytes-rate": ["Bytes/s", "전송량/초"],
  failed: ["Failed", "실패"],
  "round-trip": ["Round trip", "왕복 시간"],
  sessions: ["Sessions", "세션"],
  waiting: ["Waiting", "대기"],
  backlog: ["Backlog", "밀린 작업"],
  "backlog-empty": ["No process speaks of a topic.", "토픽을 알리는 프로세스가 없습니다."],
  topic: ["Topic", "토픽"],
  unfinished: ["Unfinished", "미완료"],
  oldest: ["Oldest waits for", "가장 오래 기다린 작업"],
  clear: ["Clear in about", "예상 완료"],
  deferred: ["Deferred", "연기됨"],
  "deferred-next": ["{0}, next {1}", "{0}, 다음 {1}"],
  processes: ["Processes", "프로세스"],
  "processes-empty": ["No process has spoken in the last hour.", "지난 1시간 동안 소식을 전한 프로세스가 없습니다."],
  "process-starting": ["starting", "시작 중"],
  "process-waiting": ["waiting", "대기 중"],
  "process-running": ["running", "실행 중"],
  "process-draining": ["draining", "마무리 중"],
  "process-stopped": ["stopped", "정지됨"],
  "process-silent": ["silent for {0}", "{0}째 소식 없음"],
  lanes: ["{0} of {1} lanes busy", "레인 {1}개 중 {0}개 사용"],
  drain: ["Drain", "비우기"],
  "drain-title": ["Drain {0}", "{0} 비우기"],
  "drain-text": ["It finishes what runs, takes nothing more, and leaves.", "실행 중인 작업을 마친 뒤 새 작업을 받지 않고 종료합니다."],
  // states of jobs
  "state-queued": ["queued", "대기열"],
  "state-waiting": ["waiting", "대기 중"],
  "state-running": ["running", "실행 중"],
  "state-done": ["done", "완료"],
  "state-failed": ["failed", "실패"],
  "state-discarded": ["discarded", "폐기됨"],
  // dead letters
  causes: ["Causes", "원인"],
  "causes-empty": ["No dead letter waits that matches.", "조건에 맞는 실패 작업이 없습니다."],
  code: ["Code", "코드"],
  folder: ["Folder", "폴더"],
  count: ["Count", "개수"],
  first: ["First", "처음"],
  last: ["Last", "마지막"],
  example: ["Example", "예"],
  list: ["Letters, newest first", "목록 (최신순)"],
  when: ["When", "언제"],
  job: ["Job", "작업"],
  error: ["Error", "오류"],
  select: ["Select", "선택"],
  "select-one": ["Select {0}", "{0} 선택"],
  "select-all": ["Select all that are shown", "표시된 항목 모두 선택"],
  "selected": ["{0} selected", "{0}개 선택됨"],
  "all-matching": ["all {0} that match", "조건에 맞는 {0}개 전체"],
  filter: ["Filter", "필터"],
  apply: ["Apply", "적용"],
  clear_filter: ["Clear", "지우기"],
  path: ["Path or pattern", "경로 또는 패턴"],
  "job-id": ["Job id", "작업 ID"],
  "newer-than": ["Newer than", "이후"],
  "older-than": ["Older than", "이전"],
  "age-hint": ["30m, 2h, 3d", "30m, 2h, 3d"],
  more: ["Go on", "더 보기"],
  "searched-until": ["searched back to {0}", "{0}까지 검색함"],
  replay: ["Replay", "다시 실행"],
  discard: ["Discard", "폐기"],
  "replay-title": ["Replay {0}", "{0} 다시 실행"],
  "discard-title": ["Discard {0}", "{0} 폐기"],
  "letters-n": ["{0} dead {1?letter:letters}", "실패 작업 {0}개"],
  "set-told": ["The set is fixed now: what fails later is not swept along.", "대상은 지금 시점으로 고정됩니다. 이후 실패한 작업은 포함되지 않습니다."],
  "not-replayable": ["{0} more were too large to be kept, and are left out.", "너무 커서 보관되지 않은 {0}개는 제외됩니다."],
  "nothing-left": ["Nothing of it waits any more.", "대상 중 대기 중인 항목이 더 이상 없습니다."],
  canary: ["First five; the others when all five are done", "먼저 5개를 실행하고, 모두 성공하면 나머지를 실행"],
  "rate-limit": ["At most this many a second", "초당 최대 개수"],
  "no-limit": ["no limit", "제한 없음"],
  reason: ["Reason", "사유"],
  "reason-needed": ["Reason (needed)", "사유 (필수)"],
  "type-number": ["More than 1,000: type the number {0}", "1,000개가 넘습니다. 숫자 {0}을(를) 입력하세요"],
  cancel: ["Close", "닫기"],
  "count-changed": ["The number has changed meanwhile. Look again.", "그사이 개수가 바뀌었습니다. 다시 확인하세요."],
  operations: ["Operations", "일괄 작업"],
  "operations-empty": ["No operation in the last 30 days.", "지난 30일 동안 일괄 작업이 없습니다."],
  what: ["What", "내용"],
  by: ["By", "누가"],
  stop: ["Stop", "중지"],
  "go-on": ["Go on now", "바로 계속"],
  "op-running": ["running", "진행 중"],
  "op-canary": ["waiting for the first five", "먼저 실행한 5개의 결과 대기"],
  "op-stopped": ["stopped", "중지됨"],
  "op-done": ["done", "완료"],
  "op-progress": ["{0} of {1} done", "{1}개 중 {0}개 완료"],
  "op-skipped": ["{0} settled by somebody else", "다른 곳에서 처리됨 {0}"],
  "op-failed": ["{0} refused", "거부됨 {0}"],
  // one dead letter
  "letter-title": ["Dead letter {0}", "실패 작업 {0}"],
  original: ["Download the original message", "원본 메시지 내려받기"],
  others: ["Other dead letters of this job", "이 작업의 다른 실패 기록"],
  message: ["Message", "메시지"],
  settled: ["Settled", "처리"],
  "settled-replayed": ["replayed", "다시 실행됨"],
  "settled-discarded": ["discarded", "폐기됨"],
  "settled-waiting": ["waiting", "대기 중"],
  from: ["From", "원본"],
  replays: ["Replays", "다시 실행 횟수"],
  // find
  "find-label": ["Job id, place, path or pattern, server", "작업 ID, 위치, 경로 또는 패턴, 서버"],
  "find-hint": [
    "Place: TOPIC/PARTITION/OFFSET. Path: begins with / or has a *. SERVER:/path means both. Anything else is a server's name or a job id.",
    "위치: 토픽/파티션/오프셋. 경로: /로 시작하거나 *를 포함. SERVER:/경로는 둘 다. 그 외는 서버 이름이나 작업 ID로 찾습니다.",
  ],
  any: ["any", "전체"],
  range: ["Time", "기간"],
  "range-1h": ["last hour", "지난 1시간"],
  "range-24h": ["last 24 hours", "지난 24시간"],
  "range-7d": ["last 7 days", "지난 7일"],
  "range-all": ["all that is kept", "보관된 전체"],
  found: ["Found, newest first", "결과 (최신순)"],
  "found-none": ["No job matches.", "조건에 맞는 작업이 없습니다."],
  size: ["Size", "크기"],
  "window-from": ["from {0} to {1}", "{0}부터 {1}까지"],
  // one job
  "job-title": ["Job {0}", "작업 {0}"],
  place: ["Place", "위치"],
  priority: ["Priority", "우선순위"],
  attempts: ["Attempts", "시도 횟수"],
  duration: ["Took", "소요 시간"],
  worker: ["Worker", "작업자"],
  letter: ["Dead letter", "실패 작업"],
  story: ["Story", "경과"],
  namesakes: ["Other jobs with this id", "같은 ID의 다른 작업"],
  result: ["Result", "결과"],
  "cancel-job": ["Cancel the job", "작업 취소"],
  "cancel-text": ["It becomes a dead letter with the code CANCELLED.", "CANCELLED 코드의 실패 작업이 됩니다."],
  "event-submitted": ["submitted", "접수됨"],
  "event-replayed": ["replayed", "다시 실행됨"],
  "event-attempt": ["attempt failed", "시도 실패"],
  "event-waiting": ["waits", "대기 중"],
  "event-started": ["started", "시작됨"],
  "event-done": ["done", "완료"],
  "event-failed": ["failed", "실패"],
  "event-dead-letter": ["became a dead letter", "실패 작업으로 분류됨"],
  "event-discarded": ["discarded", "폐기됨"],
  "event-replay": ["replay", "다시 실행"],
  "event-cancel": ["cancelled", "취소됨"],
  // a server
  "server-title": ["Server {0}", "서버 {0}"],
  hold: ["Hold", "보류"],
  release: ["Release", "보류 해제"],
  "hold-title": ["Hold {0}", "{0} 보류"],
  "hold-text": ["Its jobs wait, without spending attempts. Everybody sees the hold.", "이 서버의 작업은 시도 횟수를 쓰지 않고 기다립니다. 보류는 모두에게 표시됩니다."],
  "hold-told": ["On hold by {0}: {1}", "{0} 님이 보류함: {1}"],
  "hold-until": ["until {0}", "{0} 종료"],
  ends: ["Ends", "종료"],
  "ends-never": ["when somebody releases it", "해제할 때까지"],
  "ends-1h": ["in an hour", "1시간 후"],
  "ends-8h": ["in 8 hours", "8시간 후"],
  "ends-24h": ["in a day", "하루 후"],
  "try-now": ["Try now", "지금 시도"],
  check: ["Check", "점검"],
  "try-told": ["Consumers try it within seconds.", "컨슈머가 몇 초 안에 시도합니다."],
  "check-running": ["The API is checking it …", "API가 점검하고 있습니다 …"],
  "check-done": ["Check", "점검 결과"],
  "check-ok": ["works", "정상"],
  "last-errors": ["Dead letters that wait", "대기 중인 실패 작업"],
  "its-jobs": ["Jobs that wait or run", "대기 중이거나 실행 중인 작업"],
  "its-flight": ["Its transfers", "이 서버의 전송"],
  // audit
  "audit-empty": ["No act matches.", "조건에 맞는 기록이 없습니다."],
  actor: ["Who", "누가"],
  action: ["Act", "행위"],
  target: ["On what", "대상"],
  outcome: ["Result", "결과"],
  "result-done": ["done", "완료"],
  "result-refused": ["refused", "거부됨"],
  "result-failed": ["failed", "실패"],
  address: ["From where", "접속 위치"],
};

const LANGUAGES = { en: 0, ko: 1 };
const KEY = "etl-language";
let current = stored() ?? (navigator.language.toLowerCase().startsWith("ko") ? "ko" : "en");
document.documentElement.lang = current;

function stored() {
  try {
    const found = localStorage.getItem(KEY);
    return found in LANGUAGES ? found : null;
  } catch {
    return null; // storage is blocked: the choice lasts as long as the window
  }
}

export const language = () => current;

export function setLanguage(name) {
  current = name;
  document.documentElement.lang = name;
  try {
    localStorage.setItem(KEY, name);
  } catch {
    // as above
  }
}

const FILLED = /\{(\d)(?:\?([^:}]*):([^}]*))?\}/g;

// A text. Filled in with elements it becomes a list of strings and elements.
export function t(name, ...values) {
  const text = TEXTS[name]?.[LANGUAGES[current]];
  if (text === undefined) return name;
  const parts = [];
  let at = 0;
  for (const [whole, index, one, many] of text.matchAll(FILLED)) {
    const start = text.indexOf(whole, at);
    parts.push(text.slice(at, start), one === undefined ? values[index] : values[index] === 1 ? one : many);
    at = start + whole.length;
  }
  parts.push(text.slice(at));
  return parts.some((part) => typeof part === "object") ? parts : parts.join("");
}

// Is there such a text? Words of the API that a newer version may add are shown as they are.
export const has = (name) => name in TEXTS;
