"""Stands in for every service: ready at once, takes any request, notes its environment and the requests."""

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NOTES = Path(os.environ["FAKE_NOTES"])


class Handler(BaseHTTPRequestHandler):
    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        if body:
            with (NOTES / "requests.jsonl").open("a") as file:
                note = {"path": self.path, "key": self.headers["idempotency-key"], "body": json.loads(body)}
                file.write(json.dumps(note) + "\n")
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")

    do_GET = do_PUT = do_POST = answer

    def log_message(self, format: str, *args: object) -> None:
        pass


settings = {name: value for name, value in os.environ.items() if name.startswith("SENDWHY_")}
(NOTES / f"{settings['SENDWHY_REPLICA']}-{sys.argv[1]}.json").write_text(json.dumps(settings))
if sys.argv[1] == "serve":
    address = (settings["SENDWHY_HTTP_HOST"], int(settings["SENDWHY_HTTP_PORT"]))
    ThreadingHTTPServer(address, Handler).serve_forever()
