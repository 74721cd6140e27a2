// SPDX-License-Identifier: MIT
// Node's clients for scripts/record-heads: its http module, and its fetch.
const http = require("http"), base = process.argv[2];
const json = { "Content-Type": "application/json" }, body = JSON.stringify({ a: 1, b: ["x", "y"] });

const byModule = (method, kind, headers = {}, body) => new Promise(done => {
  const request = http.request(`${base}/http-${kind}/a`, { method, headers }, answer => {
    answer.resume();
    answer.on("end", done);
  });
  request.on("error", done);
  if (body) request.write(body);
  request.end();
});
const byFetch = (method, kind, options = {}) => fetch(`${base}/fetch-${kind}/a`, { method, ...options });

(async () => {
  await byModule("GET", "get");
  await byModule("HEAD", "head");
  await byModule("DELETE", "delete");
  await byModule("POST", "json", { ...json, "Content-Length": body.length }, body);
  await byModule("PUT", "put", { "Content-Length": 4 }, "body");
  await byModule("GET", "close", { Connection: "close" });
  await byModule("GET", "headers", { Authorization: "Bearer " + "t".repeat(100), Cookie: "a=b; c=d" });
  await byModule("POST", "chunked", json, body);
  await byFetch("GET", "get");
  await byFetch("HEAD", "head");
  await byFetch("POST", "json", { headers: json, body });
  await byFetch("POST", "form", { body: new URLSearchParams({ a: "b" }) });
  const data = new FormData();
  data.append("file", new Blob(["x".repeat(100)]), "a.txt");
  await byFetch("POST", "multipart", { body: data });
  await byFetch("PUT", "put", { body: "text" });
  await byFetch("DELETE", "delete");
  await byFetch("PATCH", "patch", { body, headers: { Authorization: "Bearer t" } });
})();
