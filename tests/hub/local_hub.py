"""A stand-in for the Hub: what the client libraries ask of it, with tokens, refusals and a bad connection.

    python -m tests.hub.local_hub PORT

serves an empty one to HF_ENDPOINT=http://127.0.0.1:PORT, HF_HUB_DISABLE_XET=1 and HF_TOKEN=hf_alicewrites.
"""

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import json
import os
import re
import socket
import sys
import threading
import urllib.parse

import uvicorn
import yaml
from fastapi import FastAPI, HTTPException, Request, Response

# Tokens are what GitHub's scanners would call a secret if they were longer.
TOKENS = {"hf_alicewrites": ("alice", "write"), "hf_alicereads": ("alice", "read"), "hf_bobwrites": ("bob", "write")}
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space"}
LARGE = (".parquet", ".safetensors", ".png")
# Values of a card's metadata that the Hub takes, as far as cards of this package may come near them: its documentation
# of licenses, `PIPELINE_DATA` of huggingface.js, the specifications of cards, the reference of Spaces.
LICENSES = frozenset(
    re.findall(
        r"\S+",
        """
        apache-2.0 mit openrail openrail++ bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0
        bigcode-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc
        cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
        cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0
        cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 agpl-3.0 gfdl gpl
        gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc lppl-1.3c ms-pl mpl-2.0 odc-by odbl osl-3.0 postgresql ofl-1.1 ncsa
        unlicense zlib pddl lgpl-lr deepfloyd-if-license llama2 gemma unknown other
        """,
    )
)
TASKS = {"depth-estimation", "image-classification", "object-detection", "image-segmentation", "mask-generation"}
TASKS |= {"image-feature-extraction", "image-to-image", "text-to-image", "unconditional-image-generation"}
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
ALLOWED = {
    "model": {
        "license": LICENSES,
        "pipeline_tag": TASKS,
        "base_model_relation": {"adapter", "finetune", "merge", "quantized"},
        "library_name": {"hf-spectral", "transformers", "diffusers"},
    },
    "dataset": {"license": LICENSES, "task_categories": TASKS},
    "space": {"license": LICENSES, "sdk": {"gradio"}, "colorFrom": COLORS, "colorTo": COLORS},
}
REQUIRED = {"space": ("sdk",)}
TEXTS = ("pretty_name", "title", "library_name", "license_name", "license_link", "sdk_version", "python_version")
# A slash inside a revision arrives as %2F, which the server would take for a slash of the path.
SLASH = "\u2215"


@dataclasses.dataclass(frozen=True)
class File:
    data: bytes
    is_large: bool

    @property
    def oid(self):
        return hashlib.sha1(b"blob %d\0" % len(self.data) + self.data).hexdigest()

    @property
    def etag(self):
        return hashlib.sha256(self.data).hexdigest() if self.is_large else self.oid


@dataclasses.dataclass
class Repository:
    kind: str
    name: str
    private: bool
    sdk: str | None
    gated: bool = False
    commits: dict = dataclasses.field(default_factory=dict)
    refs: dict = dataclasses.field(default_factory=dict)
    titles: list = dataclasses.field(default_factory=list)
    settings: dict = dataclasses.field(default_factory=dict)  # Hardware, secrets and variables of a Space.

    def __post_init__(self):
        self.add("main", {".gitattributes": File(b"*.parquet filter=lfs\n", False)}, "initial commit")

    def add(self, ref, files, title):
        sha = hashlib.sha1(repr((len(self.commits), sorted((p, f.oid) for p, f in files.items()))).encode()).hexdigest()
        self.commits[sha] = files
        self.refs[ref] = sha
        self.titles.append(title)
        return sha

    def sha(self, revision):
        revision = revision.replace(SLASH, "/")
        sha = self.refs.get(revision, revision)
        if sha not in self.commits:
            raise refusal(404, "RevisionNotFound")
        return sha


class Hub:
    """Everything the stand-in knows."""

    def __init__(self):
        self.reset()

    def reset(self):
        self.repositories = {}
        self.large = {}
        self.faults = []
        self.requests = []
        self.max_bytes = 64 << 20

    def fault(self, method, path):
        for fault in self.faults:
            if fault["times"] and re.search(fault["path"], path) and fault.get("method") in (None, method):
                fault["times"] -= 1
                return fault
        return None


def refusal(status, code=None, message=None):
    headers = {"X-Error-Code": code} if code else {}
    return HTTPException(status, message or code, {**headers, "X-Error-Message": message or code or ""})


def account(request):
    header = request.headers.get("authorization")
    if header is None:
        return None, None
    found = TOKENS.get(header.removeprefix("Bearer "))
    if found is None:
        raise refusal(401, None, "Invalid credentials in Authorization header")
    return found


def readable(hub, request, kinds, namespace, name):
    user, _ = account(request)
    found = hub.repositories.get((KINDS[kinds], f"{namespace}/{name}"))
    if found is None or (found.private and user != namespace):
        raise refusal(404 if user else 401, "RepoNotFound")
    return found


def writable(hub, request, kinds, namespace, name, to_others=False):
    found = readable(hub, request, kinds, namespace, name)
    user, role = account(request)
    if role is None:
        raise refusal(401, None, "Invalid username or password.")
    if role != "write" or (user != namespace and not to_others):
        raise refusal(403, None, "You don't have the rights to write here")
    return found


def described(path, file):
    large = {"lfs": {"oid": file.etag, "size": len(file.data), "pointerSize": 130}} if file.is_large else {}
    return {"type": "file", "path": path, "oid": file.oid, "size": len(file.data), **large}


def metadata(card):
    """Return the metadata of a card."""
    header = re.match(r"---\n(.*?)\n---", card, re.DOTALL)
    return yaml.safe_load(header[1]) if header else {}


def words(value):
    return value if isinstance(value, list) else [] if value is None else [value]


def objections(values, kind):
    """Return what the Hub would object to in the metadata of a card; its lists are shortened to what is near to us."""
    if not isinstance(values, dict):
        return ["the metadata are no mapping"]
    found = [
        f'"{name}" must be one of [{", ".join(sorted(allowed))}], got {one!r}'
        for name, allowed in ALLOWED[kind].items()
        for one in words(values.get(name))
        if one not in allowed
    ]
    if values.get("license") == "other" and not values.get("license_name"):
        found.append('"license_name" is required with license: other')
    if "base_model_relation" in values and not values.get("base_model"):
        found.append('"base_model_relation" stands without "base_model"')
    for name in ("base_model", "datasets", "models", "source_datasets"):
        found += [
            f'"{name}" with value {one!r} is not valid'
            for one in words(values.get(name))
            if not re.fullmatch(r"[\w.-]+/[\w.-]+", one)
        ]
    found += [f'"{name}" is no string' for name in TEXTS if not isinstance(values.get(name, ""), str)]
    if len(values.get("short_description", "")) > 60:
        found.append('"short_description" must have at most 60 characters')
    return found + [f'"{name}" is required' for name in REQUIRED.get(kind, ()) if not values.get(name)]


def build(hub):
    app = FastAPI()
    add_repositories(app, hub)
    add_uploads(app, hub)
    add_downloads(app, hub)
    add_control(app, hub)
    return app


def add_repositories(app, hub):
    @app.get("/api/whoami-v2")
    def whoami(request: Request):
        user, role = account(request)
        if user is None:
            raise refusal(401, None, "Invalid username or password.")
        return {"type": "user", "name": user, "orgs": [], "auth": {"accessToken": {"displayName": "t", "role": role}}}

    @app.post("/api/repos/create")
    async def create(request: Request):
        values = await request.json()
        user, role = account(request)
        if user is None:
            raise refusal(401, None, "Invalid username or password.")
        owner, kind = values.get("organization") or user, values.get("type") or "model"
        if role != "write" or owner != user:
            raise refusal(403, None, f"You don't have the rights to create a {kind} under the namespace {owner}")
        if kind == "space" and not values.get("sdk"):
            raise refusal(400, None, "sdk is required")
        name = f"{owner}/{values['name']}"
        url = f"{request.base_url}{'' if kind == 'model' else kind + 's/'}{name}"
        if (kind, name) in hub.repositories:
            return Response(json.dumps({"error": "You already created this repo", "url": url}), 409)
        private = values.get("visibility") == "private" or bool(values.get("private"))
        found = hub.repositories[kind, name] = Repository(kind, name, private, values.get("sdk"))
        for part in ("secrets", "variables"):
            found.settings[part] = {one["key"]: one["value"] for one in values.get(part, ())}
        found.settings["hardware"] = values.get("hardware")
        return {"url": url, "name": name, "id": "0"}

    @app.post("/api/spaces/{namespace}/{name}/{part}")
    async def change(namespace, name, part, request: Request):
        found, values = writable(hub, request, "spaces", namespace, name), await request.json()
        if part == "hardware":
            found.settings[part] = values["flavor"]
            return {"stage": "BUILDING", "hardware": {"current": None, "requested": values["flavor"]}}
        found.settings[part][values["key"]] = values["value"]
        shown = {key: {"value": value, "updatedAt": None} for key, value in found.settings[part].items()}
        return {} if part == "secrets" else shown

    @app.post("/api/{kinds}/{namespace}/{name}/branch/{revision}")
    def branch(kinds, namespace, name, revision, request: Request):
        found = writable(hub, request, kinds, namespace, name)
        if revision in found.refs:
            raise refusal(409, None, f"Reference already exists: {revision}")
        found.refs[revision.replace(SLASH, "/")] = found.refs["main"]
        return {}

    @app.get("/api/{kinds}/{namespace}/{name}")
    @app.get("/api/{kinds}/{namespace}/{name}/revision/{revision}")
    def info(kinds, namespace, name, request: Request, revision="main"):
        found = readable(hub, request, kinds, namespace, name)
        sha = found.sha(revision)
        files = [{"rfilename": path} for path in sorted(found.commits[sha])]
        card = found.commits[sha].get("README.md")
        return {
            "cardData": card and metadata(card.data.decode()),
            **{"_id": "0", "id": found.name, "sha": sha, "siblings": files, "tags": [], "downloads": 0, "likes": 0},
            **{"private": found.private, "gated": "auto" if found.gated else False, "disabled": False},
            **dict.fromkeys(("lastModified", "createdAt"), "2026-01-01T00:00:00.000Z"),
        }

    @app.get("/api/{kinds}/{namespace}/{name}/refs")
    def refs(kinds, namespace, name, request: Request):
        found = readable(hub, request, kinds, namespace, name)
        branches = [{"name": ref, "ref": f"refs/heads/{ref}", "targetCommit": sha} for ref, sha in found.refs.items()]
        return {"branches": branches, "tags": [], "converts": []}

    @app.get("/api/{kinds}/{namespace}/{name}/tree/{revision}")
    @app.get("/api/{kinds}/{namespace}/{name}/tree/{revision}/{path:path}")
    def tree(kinds, namespace, name, revision, request: Request, path="", recursive="false"):
        found = readable(hub, request, kinds, namespace, name)
        files, prefix = found.commits[found.sha(revision)], f"{path.strip('/')}/" if path else ""
        below = {one: file for one, file in files.items() if one.startswith(prefix)}
        if path and not below:
            raise refusal(404, "EntryNotFound")
        deep = recursive.lower() in ("true", "1")
        folders = set()
        for one in below:
            parts = one[len(prefix) :].split("/")[:-1]
            folders |= {
                prefix + "/".join(parts[: end + 1]) for end in range(len(parts) if deep else min(1, len(parts)))
            }
        shown = [described(one, file) for one, file in below.items() if deep or "/" not in one[len(prefix) :]]
        return shown + [{"type": "directory", "path": one, "oid": "0" * 40, "size": 0} for one in sorted(folders)]

    @app.post("/api/{kinds}/{namespace}/{name}/paths-info/{revision}")
    async def paths_info(kinds, namespace, name, revision, request: Request):
        found = readable(hub, request, kinds, namespace, name)
        is_json = "json" in request.headers.get("content-type", "")
        paths = (await request.json())["paths"] if is_json else (await request.form()).getlist("paths")
        files = found.commits[found.sha(revision)]
        folders = [one for one in paths if any(path.startswith(f"{one.strip('/')}/") for path in files)]
        shown = [{"type": "directory", "path": one, "oid": "0" * 40} for one in folders]
        return [described(one, files[one]) for one in paths if one in files] + shown


def add_uploads(app, hub):
    @app.post("/api/validate-yaml")
    async def validate(request: Request):
        values = await request.json()
        try:
            found = objections(metadata(values["content"]), values["repoType"])
        except yaml.YAMLError as error:
            found = [str(error)]
        answer = {"errors": [{"message": one} for one in found], "warnings": []}
        return Response(json.dumps(answer), 400 if found else 200, media_type="application/json")

    @app.post("/api/{kinds}/{namespace}/{name}/preupload/{revision}")
    async def preupload(kinds, namespace, name, revision, request: Request):
        found = writable(hub, request, kinds, namespace, name, request.query_params.get("create_pr") == "1")
        files = found.commits[found.sha(revision)]
        return {"files": [
            {"path": one["path"], "uploadMode": "lfs" if one["path"].endswith(LARGE) else "regular",
             "shouldIgnore": False, "oid": files[one["path"]].oid if one["path"] in files else None}
            for one in (await request.json())["files"]
        ]}  # fmt: skip

    @app.post("/{kinds}/{namespace}/{name}.git/info/lfs/objects/batch")
    async def batch(kinds, namespace, name, request: Request):
        writable(hub, request, kinds, namespace, name, True)
        address = str(request.base_url).rstrip("/")
        objects = []
        for one in (await request.json())["objects"]:
            upload = {"upload": {"href": f"{address}/_large/{one['oid']}"}, "verify": {"href": f"{address}/_verify"}}
            objects.append({**one, **({} if one["oid"] in hub.large else {"actions": upload})})
        content = json.dumps({"transfer": "basic", "objects": objects})
        return Response(content, media_type="application/vnd.git-lfs+json")

    @app.post("/{namespace}/{name}.git/info/lfs/objects/batch")
    async def batch_of_model(namespace, name, request: Request):
        return await batch("models", namespace, name, request)

    @app.put("/_large/{oid}")
    async def put(oid, request: Request):
        content = await request.body()
        if len(content) > hub.max_bytes:
            raise refusal(413)
        if hashlib.sha256(content).hexdigest() != oid:
            raise refusal(400, None, "another checksum")
        hub.large[oid] = content

    @app.post("/_verify")
    async def verify(request: Request):
        return {} if (await request.json())["oid"] in hub.large else Response(status_code=404)

    @app.post("/api/{kinds}/{namespace}/{name}/commit/{revision}")
    async def commit(kinds, namespace, name, revision, request: Request, create_pr="0"):
        found = writable(hub, request, kinds, namespace, name, create_pr == "1")
        parent = found.sha(revision)
        lines = [json.loads(line) for line in (await request.body()).splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, parent):
            raise refusal(412, None, "The commit is not based on the latest one")
        files = dict(found.commits[parent])
        for line in lines[1:]:
            apply(hub, files, line["key"], line["value"])
        address = f"{request.base_url}{'' if kinds == 'models' else kinds + '/'}{found.name}"
        number = sum(ref.startswith("refs/pr/") for ref in found.refs) + 1
        ref = f"refs/pr/{number}" if create_pr == "1" else revision.replace(SLASH, "/")
        sha = found.add(ref, files, header["summary"])
        pull = {"pullRequestUrl": f"{address}/discussions/{number}"} if create_pr == "1" else {}
        return {"success": True, "commitOid": sha, "commitUrl": f"{address}/commit/{sha}", "hookOutput": "", **pull}


def apply(hub, files, key, value):
    if key == "file":
        files[value["path"]] = File(base64.b64decode(value["content"]), False)
    elif key == "lfsFile":
        files[value["path"]] = File(hub.large[value["oid"]], True)
    elif key == "deletedFile":
        files.pop(value["path"], None)
    elif key == "deletedFolder":
        for path in [one for one in files if one.startswith(f"{value['path'].rstrip('/')}/")]:
            del files[path]


def add_downloads(app, hub):
    def resolve(kinds, namespace, name, revision, path, request):
        found = readable(hub, request, kinds, namespace, name)
        user, _ = account(request)
        if found.gated and user != namespace:
            raise refusal(403 if user else 401, "GatedRepo")
        sha = found.sha(revision)
        file = found.commits[sha].get(path)
        if file is None:
            raise refusal(404, "EntryNotFound")
        headers = {"X-Repo-Commit": sha, "ETag": f'"{file.etag}"', "Accept-Ranges": "bytes"}
        content, status = file.data, 200
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("range", ""))
        if part:
            start, end = int(part[1]), int(part[2] or len(content) - 1)
            headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
            content, status = content[start : end + 1], 206
        if request.method == "HEAD":
            headers["Content-Length"], content = str(len(content)), b""
        return Response(content, status, headers, "application/octet-stream")

    @app.api_route("/{kinds}/{namespace}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    def of_others(kinds, namespace, name, revision, path, request: Request):
        return resolve(kinds, namespace, name, revision, path, request)

    @app.api_route("/{namespace}/{name}/resolve/{revision}/{path:path}", methods=["GET", "HEAD"])
    def of_models(namespace, name, revision, path, request: Request):
        return resolve("models", namespace, name, revision, path, request)


def add_control(app, hub):
    """What a test asks of the stand-in: faults to come, what was asked, what is there."""

    @app.post("/_control/reset")
    def reset():
        hub.reset()

    @app.post("/_control/fault")
    async def fault(request: Request):
        hub.faults.append(await request.json())

    @app.post("/_control/mend")
    def mend():
        hub.faults.clear()
        hub.max_bytes = 64 << 20

    @app.post("/_control/forget")
    def forget():
        hub.large.clear()  # So that uploads are not skipped; repositories keep their files.

    @app.post("/_control/limit")
    async def limit(request: Request):
        hub.max_bytes = (await request.json())["max_bytes"]

    @app.post("/_control/gate")
    async def gate(request: Request):
        hub.repositories[tuple((await request.json())["repository"])].gated = True

    @app.get("/_control/requests")
    def requests():
        return hub.requests

    @app.get("/_control/repository/{kind}/{namespace}/{name}")
    def repository(kind, namespace, name):
        found = hub.repositories.get((kind, f"{namespace}/{name}"))
        if found is None:
            return None
        files = {path: base64.b64encode(file.data).decode() for path, file in found.commits[found.refs["main"]].items()}
        said = {name: getattr(found, name) for name in ("titles", "private", "sdk", "refs", "settings")}
        return {"files": files, **said}


class BadConnection:
    """Stands between the network and the app: drops, delays or refuses what a test has asked it to."""

    def __init__(self, app, hub):
        self.app, self.hub = app, hub

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            raw = scope["raw_path"].decode()
            scope = {**scope, "path": urllib.parse.unquote(re.sub("%2F", SLASH, raw, flags=re.IGNORECASE))}
            if not raw.startswith("/_control"):
                self.hub.requests.append([scope["method"], scope["path"]])
                fault = self.hub.fault(scope["method"], raw)
                if fault is not None and await self.misbehave(fault, receive, send):
                    return
        await self.app(scope, receive, send)

    async def misbehave(self, fault, receive, send):
        """Return True if the request has met its end."""
        if fault["kind"] == "slow":
            await asyncio.sleep(fault["seconds"])
            return False
        if fault["kind"] == "drop":
            await receive()  # The first part of the body has arrived.
            receive.__self__.transport.abort()
            return True
        await send({"type": "http.response.start", "status": fault["status"], "headers": []})
        await send({"type": "http.response.body", "body": b""})
        return True


def server(hub, port=0):
    """Return a uvicorn server of a stand-in, not yet running."""
    app = BadConnection(build(hub), hub)
    return uvicorn.Server(uvicorn.Config(app, "127.0.0.1", port, log_level="critical", lifespan="off"))


@contextlib.contextmanager
def running(hub):
    """Serve a stand-in from a thread, until the block ends; give its address."""
    listening = socket.create_server(("127.0.0.1", 0))
    served = server(hub)
    thread = threading.Thread(target=served.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        served.should_exit = True
        thread.join()


def environment_of(address, folder):
    """Return the environment of a process whose client libraries speak to a stand-in; they read it at import."""
    environment = os.environ | {
        "HF_ENDPOINT": address,
        "HF_HOME": str(folder),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        # Else `datasets` tells a server of Amazon which dataset was loaded.
        "HF_UPDATE_DOWNLOAD_COUNTS": "0",
        "HF_TOKEN": "hf_alicewrites",
    }
    environment.pop("HF_HUB_OFFLINE", None)
    return environment


if __name__ == "__main__":
    server(Hub(), int(sys.argv[1])).run()
