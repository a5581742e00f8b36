// ftp-srv with TLS: MODULE HOST PORT ROOT USER PASSWORD PEM
const fs = require('fs');
const [module_, host, port, root, user, password, pem] = process.argv.slice(2);
const FtpSrv = require(module_);
const both = fs.readFileSync(pem);
const server = new FtpSrv({
  url: `ftp://${host}:${port}`,
  pasv_url: host,
  pasv_min: 30001,
  pasv_max: 32000,
  tls: { key: both, cert: both },
});
server.on('login', (login, resolve, reject) =>
  login.username === user && login.password === password ? resolve({ root }) : reject(new Error('no')));
server.listen();
