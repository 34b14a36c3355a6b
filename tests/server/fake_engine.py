"""A stand-in for ``ragkit serve INDEX``: connects back to the server and answers.

The question decides what it does: "die" ends the process, "fail" is an error, "wait" is never
answered, anything else is answered in two pieces.
"""

from __future__ import annotations

import json
import os
import sys
import time

from websockets.sync.client import connect


def main(index: str) -> None:
    if index.endswith("broken"):
        print(f"no index at {index}; my token is {os.environ['RAGKIT_TOKEN']}", file=sys.stderr)
        sys.exit(4)
    url = os.environ["RAGKIT_URL"].replace("http", "ws", 1) + "api/v1/engine"
    with connect(url, additional_headers={"Authorization": f"token {os.environ['RAGKIT_TOKEN']}"}) as socket:

        def say(**message: object) -> None:
            socket.send(json.dumps(message))

        run = str(os.getpid())
        say(type="hello", publisher=f"child-{run}", origin={"kind": "cli", "name": "serve", "run_id": run})
        say(type="offer", engine={"id": f"engine-{run}", "index": index})
        for frame in socket:
            message = json.loads(frame)
            if message["type"] != "engine_query":
                continue
            question = message["content"]["question"]
            if question == "die":
                print("I was asked to die", file=sys.stderr, flush=True)
                os._exit(3)
            elif question == "fail":
                say(type="error", id=message["id"], content={"message": "it failed", "code": "ENGINE_FAILED"})
            elif question != "wait":
                say(type="response_delta", id=message["id"], content={"delta": run})
                say(type="response", id=message["id"], content={"answer": run, "sources": []})
    time.sleep(600)  # a real one would try to connect again: it has to be ended


if __name__ == "__main__":
    main(sys.argv[1])
