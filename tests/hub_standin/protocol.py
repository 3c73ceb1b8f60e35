"""What the stand-in answers at each address: one method of `Hub` per route, plain data in and out.

Addresses, fields and error codes are those of the real Hub as huggingface_hub 1.x and 2.x use them. Nothing
here knows of sockets; `server.py` puts it behind HTTP.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from tests.hub_standin.repository import File, HubError, Repo, checked_path, decode_base64, git_blob_id

TOKEN = "hf_stand_in_token"
USER = "me"
LFS_SUFFIXES = (".safetensors", ".bin", ".pt", ".npy")
LFS_SIZE = 1 << 20  # larger files go through LFS whatever they are called
PART_SIZE = 1 << 20  # larger objects are uploaded in parts where the client can


class Request:
    """What a route sees of a request, and the headers it wants in the answer."""

    def __init__(self, method: str, target: str, headers: Any, body: bytes) -> None:
        split = urlsplit(target)
        self.method, self.path, self.headers, self.body = method, split.path, headers, body
        self.query = {name: values[-1] for name, values in parse_qs(split.query).items()}
        self.answer_headers: dict[str, str] = {}

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError as error:
            raise HubError(400, f"{self.path}: the body is no JSON: {self.body[:80]!r}") from error


class Hub:
    """Everything that was uploaded, and the routes over it. Addresses it gives start with its two URLs."""

    url: str
    storage_url: str

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}  # git blob id -> content
        self.objects: dict[str, bytes] = {}  # sha256 -> content of an LFS object
        self.parts: dict[tuple[str, int], bytes] = {}  # (sha256, part number) -> content, until completed
        self.log: list[tuple[str, str, int]] = []  # (method, path, status) in the order of the answers
        self.failures: list[str] = []
        self.lock = threading.RLock()

    def content(self, file: File) -> bytes:
        return self.blobs[file.oid] if file.sha256 is None else self.objects[file.sha256]

    def repo(self, repo_id: str) -> Repo:
        if repo_id not in self.repos:
            raise HubError(404, f"Repository not found: {repo_id}", "RepoNotFound", expected=True)
        return self.repos[repo_id]

    # Repositories

    def create(self, request: Request) -> Any:
        body = request.json()
        name, owner = body.get("name"), body.get("organization") or USER
        if not isinstance(name, str) or not re.fullmatch(r"[\w.-]{1,96}", name):
            raise HubError(400, f"Invalid repository name: {name!r}")
        if body.get("type", "model") != "model":
            raise HubError(400, f"Only model repositories are served, not {body['type']!r}")
        repo_id = f"{owner}/{name}"
        url = {"url": f"{self.url}/{repo_id}", "name": repo_id, "id": repo_id}
        if repo_id in self.repos:
            raise HubError(409, "You already created this model repo", expected=True, body=url)
        private = body.get("private") is True or body.get("visibility") == "private"
        self.repos[repo_id] = Repo(repo_id, private=private)
        return url

    def whoami(self, request: Request) -> Any:
        return {"type": "user", "name": USER, "fullname": USER, "orgs": [], "auth": {"type": "access_token"}}

    def validate_yaml(self, request: Request) -> Any:
        body = request.json()
        block = re.match(r"---\r?\n(.*?\n)---\r?\n", body["content"], re.DOTALL)
        if block is None:
            return {"errors": [], "warnings": [{"message": "empty or missing yaml metadata in repo card"}]}
        try:
            data = yaml.safe_load(block[1])
        except yaml.YAMLError as error:
            raise HubError(400, "Invalid YAML", body={"errors": [{"message": str(error)}]}) from error
        if not isinstance(data, dict):
            raise HubError(400, "Invalid YAML", body={"errors": [{"message": "metadata is no mapping"}]})
        return {"errors": [], "warnings": []}

    def info(self, request: Request, repo_id: str, revision: str = "main") -> Any:
        repo = self.repo(repo_id)
        sha = repo.resolve(revision)
        names = [{"rfilename": path} for path in sorted(repo.commits[sha])]
        common = {"tags": [], "downloads": 0, "likes": 0, "gated": False, "disabled": False}
        return (
            {"_id": sha[:24], "id": repo_id, "modelId": repo_id, "sha": sha}
            | common
            | {
                "private": repo.private,
                "siblings": names,
            }
        )

    def tree(self, request: Request, repo_id: str, revision: str, folder: str = "") -> Any:
        repo = self.repo(repo_id)
        files = repo.commits[repo.resolve(revision)]
        prefix = f"{folder}/" if folder else ""
        inside = {path: file for path, file in files.items() if path.startswith(prefix)}
        if folder and not inside:
            raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound", expected=True)
        recursive = request.query.get("recursive", "").lower() in ("true", "1")
        entries: dict[str, dict[str, Any]] = {}
        for path, file in sorted(inside.items()):
            below = path[len(prefix) :].split("/")
            for depth in range(1, len(below) if recursive else min(2, len(below))):
                name = prefix + "/".join(below[:depth])
                entries[name] = {"type": "directory", "path": name, "oid": "0" * 40, "size": 0}
            if recursive or len(below) == 1:
                entries[path] = entry(path, file)
        return list(entries.values())

    def paths_info(self, request: Request, repo_id: str, revision: str) -> Any:
        repo = self.repo(repo_id)
        files = repo.commits[repo.resolve(revision)]
        return [entry(path, files[path]) for path in request.json()["paths"] if path in files]

    def branch(self, request: Request, repo_id: str, name: str) -> Any:
        repo = self.repo(repo_id)
        if name in repo.branches:
            raise HubError(409, "Reference already exists", expected=True)
        repo.branches[name] = repo.resolve(request.json().get("startingPoint", "main"))
        return {}

    # Uploads

    def preupload(self, request: Request, repo_id: str, revision: str) -> Any:
        repo = self.repo(repo_id)
        files = repo.commits[repo.resolve(revision)]
        answer = []
        for item in request.json()["files"]:
            path, size = checked_path(item["path"]), item["size"]
            if len(decode_base64(item["sample"])) != min(size, 512):
                raise HubError(400, f"{path}: the sample is not the first 512 bytes of {size}")
            mode = "lfs" if path.endswith(LFS_SUFFIXES) or size > LFS_SIZE else "regular"
            known = files.get(path)
            oid = None if known is None else known.sha256 or known.oid
            answer.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": answer}

    def lfs_batch(self, request: Request, repo_id: str) -> Any:
        self.repo(repo_id)
        body = request.json()
        if request.headers.get("Accept") != "application/vnd.git-lfs+json":
            raise HubError(406, f"LFS batch asked for {request.headers.get('Accept')!r}")
        if body["operation"] != "upload" or body["hash_algo"] != "sha256" or "basic" not in body["transfers"]:
            raise HubError(422, f"Unsupported LFS batch: {body}")
        multipart = "multipart" in body["transfers"]
        objects = [self.lfs_actions(repo_id, item, multipart) for item in body["objects"]]
        return {"transfer": "multipart" if multipart else "basic", "objects": objects}

    def lfs_actions(self, repo_id: str, item: dict[str, Any], multipart: bool) -> dict[str, Any]:
        oid, size = item["oid"], item["size"]
        if not re.fullmatch(r"[0-9a-f]{64}", oid) or not isinstance(size, int) or size <= 0:
            return item | {"error": {"code": 422, "message": f"Invalid object {oid!r} of {size!r} bytes"}}
        if oid in self.objects:
            return {"oid": oid, "size": size}  # no actions: nothing to upload
        upload: dict[str, Any] = {"href": f"{self.storage_url}/storage/{oid}?size={size}"}
        if multipart and size > PART_SIZE:
            count = -(-size // PART_SIZE)
            parts = {str(n): f"{self.storage_url}/storage/{oid}/part/{n}" for n in range(1, count + 1)}
            upload = {"href": f"{self.url}/complete/{oid}?size={size}", "header": parts}
            upload["header"]["chunk_size"] = str(PART_SIZE)
        verify = {"href": f"{self.url}/{repo_id}.git/info/lfs/verify"}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": verify}}

    def keep_object(self, oid: str, data: bytes, size: str) -> None:
        digest = hashlib.sha256(data).hexdigest()
        if digest != oid or len(data) != int(size):
            raise HubError(400, f"Object {oid} of {size} bytes was sent as {digest} of {len(data)} bytes")
        self.objects[oid] = data

    def put_object(self, request: Request, oid: str) -> Any:
        self.keep_object(oid, request.body, request.query["size"])
        return {}

    def put_part(self, request: Request, oid: str, number: str) -> Any:
        if not 0 < len(request.body) <= PART_SIZE:
            raise HubError(400, f"Part {number} of {oid} has {len(request.body)} bytes of {PART_SIZE}")
        self.parts[oid, int(number)] = request.body
        request.answer_headers["ETag"] = f'"{hashlib.md5(request.body).hexdigest()}"'
        return {}

    def complete_parts(self, request: Request, oid: str) -> Any:
        body, data = request.json(), b""
        for expected, part in enumerate(body["parts"], start=1):
            number = part["partNumber"]
            content = self.parts.get((oid, number))
            if content is None or number != expected or part["etag"].strip('"') != hashlib.md5(content).hexdigest():
                raise HubError(400, f"Part {number} of {oid} is unknown, out of order or has another ETag")
            data += self.parts.pop((oid, number))
        self.keep_object(body["oid"], data, request.query["size"])
        return {}

    def verify_object(self, request: Request, repo_id: str) -> Any:
        body = request.json()
        if len(self.objects.get(body["oid"], b"")) != body["size"]:
            raise HubError(404, f"Object {body['oid']} of {body['size']} bytes was not uploaded")
        return {}

    def commit(self, request: Request, repo_id: str, revision: str) -> Any:
        repo = self.repo(repo_id)
        if request.headers.get("Content-Type") != "application/x-ndjson":
            raise HubError(400, f"A commit is ndjson, not {request.headers.get('Content-Type')!r}")
        if revision not in repo.branches:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        lines = [json.loads(line) for line in request.body.splitlines()]
        if not lines or lines[0]["key"] != "header" or not lines[0]["value"]["summary"]:
            raise HubError(400, "A commit starts with a header that has a summary")
        head = repo.branches[revision]
        if lines[0]["value"].get("parentCommit", head) != head:
            raise HubError(412, f"{revision} is at {head}, not at {lines[0]['value']['parentCommit']}")
        tree = dict(repo.commits[head])
        for line in lines[1:]:
            self.apply(tree, line["key"], line["value"])
        sha = repo.commit(revision, tree, lines[0]["value"]["summary"])
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.url}/{repo_id}/commit/{sha}"}

    def apply(self, tree: dict[str, File], key: str, value: dict[str, Any]) -> None:
        """One line of a commit, applied to the tree that is being built."""
        path = checked_path(value["path"].rstrip("/"))
        if key == "file" and value["encoding"] == "base64":
            data = decode_base64(value["content"])
            tree[path] = File(git_blob_id(data), len(data))
            self.blobs[tree[path].oid] = data
        elif key == "lfsFile" and value["algo"] == "sha256":
            data = self.objects.get(value["oid"], b"")
            if len(data) == 0 or value.get("size", len(data)) != len(data):
                raise HubError(400, f"{path}: LFS object {value['oid']} was not uploaded with this size")
            tree[path] = File(git_blob_id(lfs_pointer(value["oid"], len(data))), len(data), value["oid"])
        elif key in ("deletedFile", "deletedFolder"):
            gone = [p for p in tree if p == path or (key == "deletedFolder" and p.startswith(f"{path}/"))]
            if not gone:
                raise HubError(404, f"{path}: a file with this name doesn't exist", "EntryNotFound")
            for name in gone:
                del tree[name]
        else:
            raise HubError(400, f"Unknown operation {key!r} in a commit")

    # Downloads

    def resolve_file(self, request: Request, repo_id: str, revision: str, path: str) -> Any:
        repo = self.repo(repo_id)
        sha = repo.resolve(revision)
        request.answer_headers["X-Repo-Commit"] = sha
        file = repo.commits[sha].get(path)
        if file is None:
            raise HubError(404, f"{path} does not exist on {revision}", "EntryNotFound", expected=True)
        if file.sha256 is None:
            request.answer_headers["ETag"] = f'"{file.oid}"'
            return self.blobs[file.oid]
        request.answer_headers["X-Linked-Size"] = str(file.size)
        request.answer_headers["X-Linked-ETag"] = f'"{file.sha256}"'
        request.answer_headers["Location"] = f"{self.storage_url}/storage/{file.sha256}"
        return b""

    def get_object(self, request: Request, oid: str) -> Any:
        if oid not in self.objects:
            raise HubError(404, f"No object {oid}")
        if "Authorization" in request.headers:
            raise HubError(400, "A token was sent to the storage host")
        request.answer_headers["ETag"] = f'"{oid}"'
        return self.objects[oid]


def lfs_pointer(sha256: str, size: int) -> bytes:
    """What git itself stores of an LFS object."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def entry(path: str, file: File) -> dict[str, Any]:
    """A file as tree listings show it."""
    shown: dict[str, Any] = {"type": "file", "path": path, "oid": file.oid, "size": file.size}
    if file.sha256 is not None:
        pointer = lfs_pointer(file.sha256, file.size)
        shown["lfs"] = {"oid": file.sha256, "size": file.size, "pointerSize": len(pointer)}
    return shown


REPO = r"(?P<repo_id>[^/]+/[^/]+)"
REVISION = r"(?P<revision>[^/]+)"
SHA256 = r"(?P<oid>[0-9a-f]{64})"
# (method, path, name of the `Hub` method, needs a token), matched on the still quoted path; first match wins.
ROUTES = [
    ("POST", r"/api/repos/create", "create", True),
    ("GET", r"/api/whoami-v2", "whoami", True),
    ("POST", r"/api/validate-yaml", "validate_yaml", False),
    ("POST", rf"/api/models/{REPO}/preupload/{REVISION}", "preupload", True),
    ("POST", rf"/api/models/{REPO}/commit/{REVISION}", "commit", True),
    ("POST", rf"/api/models/{REPO}/branch/(?P<name>[^/]+)", "branch", True),
    ("POST", rf"/api/models/{REPO}/paths-info/{REVISION}", "paths_info", False),
    ("GET", rf"/api/models/{REPO}/tree/{REVISION}(?:/(?P<folder>.+))?", "tree", False),
    ("GET", rf"/api/models/{REPO}/revision/{REVISION}", "info", False),
    ("GET", rf"/api/models/{REPO}", "info", False),
    ("POST", rf"/{REPO}\.git/info/lfs/objects/batch", "lfs_batch", True),
    ("POST", rf"/{REPO}\.git/info/lfs/verify", "verify_object", True),
    ("PUT", rf"/storage/{SHA256}/part/(?P<number>\d+)", "put_part", False),
    ("PUT", rf"/storage/{SHA256}", "put_object", False),
    ("POST", rf"/complete/{SHA256}", "complete_parts", False),
    ("GET", rf"/storage/{SHA256}", "get_object", False),
    ("GET", rf"/{REPO}/resolve/{REVISION}/(?P<path>.+)", "resolve_file", False),
]
