// ftp-srv with one account, encrypted: node ftps.js PORT ROOT USER PASSWORD PEM. Its own command knows no TLS.
'use strict';

const fs = require('fs');
const FtpSrv = require('ftp-srv');

const [port, root, user, expected, pem] = process.argv.slice(2);
const both = fs.readFileSync(pem);
const server = new FtpSrv({
  url: `ftp://127.0.0.1:${port}`,
  pasv_url: '127.0.0.1',
  pasv_min: 30001,
  pasv_max: 32000,
  tls: { key: both, cert: both },
});
server.on('login', ({ username, password }, resolve, reject) =>
  username === user && password === expected ? resolve({ root }) : reject(new Error('Invalid username or password')));
server.listen();
