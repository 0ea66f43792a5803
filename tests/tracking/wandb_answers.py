"""What the stand-in for W&B's server knows and answers: runs, artifacts, GraphQL, uploads, the file stream."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote

HISTORY, SUMMARY, EVENTS = "wandb-history.jsonl", "wandb-summary.json", "wandb-events.jsonl"
ENTITY = "team"


@dataclass
class Run:
    """One run as the server knows it."""

    name: str
    project: str
    asked: dict[str, Any] = field(default_factory=dict)  # the variables of all its UpsertBucket, the last one wins
    streams: dict[str, dict[int, str]] = field(default_factory=dict)  # file -> line number -> line
    files: dict[str, bytes] = field(default_factory=dict)
    used: list[str] = field(default_factory=list)  # ids of artifacts
    state: str = "running"  # running, finished, preempted, failed
    preempting: bool = False
    opened: int = 1  # how many times a client began or resumed it

    @property
    def raw_config(self) -> dict[str, Any]:
        """As sent: each value under "value", W&B's own under "_wandb"."""
        found: dict[str, Any] = json.loads(self.asked.get("config") or "{}")
        return found

    @property
    def config(self) -> dict[str, Any]:
        return {key: item["value"] for key, item in self.raw_config.items() if key != "_wandb"}

    @property
    def rows(self) -> list[dict[str, Any]]:
        """The history, one row per line; a hole between lines is an error of the client."""
        lines = self.streams.get(HISTORY, {})
        assert sorted(lines) == list(range(len(lines))), f"{self.name}: lines {sorted(lines)} have holes"
        return [json.loads(lines[number]) for number in sorted(lines)]

    @property
    def summary(self) -> dict[str, Any]:
        lines = self.streams.get(SUMMARY, {})
        text = lines[max(lines)] if lines else self.asked.get("summaryMetrics") or "{}"
        found: dict[str, Any] = json.loads(text)
        return found

    def status(self, keys: tuple[str, ...] = ("t",)) -> dict[str, Any]:
        """What a client that resumes it is told."""
        own = self.raw_config.get("_wandb", {}).get("value", {})
        history, events = self.streams.get(HISTORY, {}), self.streams.get(EVENTS, {})
        return {
            "id": f"id-{self.name}",
            "name": self.name,
            "displayName": self.asked.get("displayName") or self.name,
            "config": json.dumps(self.raw_config),
            "tags": self.asked.get("tags") or [],
            "notes": "",
            "historyLineCount": len(history),
            "historyTail": tail(history),
            "eventsLineCount": len(events),
            "eventsTail": tail(events),
            "logLineCount": 0,
            "summaryMetrics": json.dumps(self.summary),
            "wandbConfig": json.dumps({key: own[key] for key in keys if key in own}),
        }


@dataclass
class Artifact:
    """One version of an artifact: what it is called, and its files."""

    id: str
    name: str
    type: str
    digest: str
    project: str
    by: str  # the run that logged it
    metadata: Any
    aliases: list[str] = field(default_factory=list)
    state: str = "PENDING"
    files: dict[str, bytes] = field(default_factory=dict)  # its manifest is among them

    def told(self, version: int) -> dict[str, Any]:
        """This version, as the client's fragment of an artifact asks for it."""
        project = {"id": "project", "internalId": "0", "name": self.project, "entity": {"name": ENTITY}}
        aliases = [{"__typename": "ArtifactAlias", "id": alias, "alias": alias} for alias in self.aliases]
        collection = {"__typename": "ArtifactSequence", "name": self.name, "project": project}
        return {
            "__typename": "Artifact",
            "id": self.id,
            "artifactSequence": collection,
            "versionIndex": version,
            "artifactType": {"name": self.type},
            "description": None,
            "metadata": self.metadata,
            "ttlDurationSeconds": 0,
            "ttlIsInherited": True,
            "tags": [],
            "historyStep": None,
            "state": self.state,
            "size": sum(map(len, self.files.values())),
            "digest": self.digest,
            "digestAlgorithm": "MANIFEST_MD5",
            "commitHash": self.id,
            "fileCount": len(self.files) - 1,
            "createdAt": "2000-01-01T00:00:00Z",
            "updatedAt": None,
            "aliases": [{**alias, "artifactCollection": collection} for alias in aliases],
        }


def tail(lines: dict[int, str]) -> str:
    """The last line, as a JSON list of JSON texts."""
    return json.dumps([lines[max(lines)]] if lines else [])


class Answers:
    """Everything that it was given, and the answer to each request in good order."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.runs: dict[str, Run] = {}
        self.artifacts: dict[str, Artifact] = {}
        self.views: list[dict[str, Any]] = []  # reports, as sent
        self.unknown: list[str] = []  # GraphQL operations that it has no answer for
        self.lock = threading.RLock()
        self._places: dict[str, tuple[dict[str, bytes], str]] = {}  # upload path -> where its bytes belong

    def _committed(self, name: str) -> list[Artifact]:
        """The committed versions of an artifact."""
        return [item for item in self.artifacts.values() if item.name == name and item.state == "COMMITTED"]

    def to(self, method: str, path: str, body: bytes) -> tuple[int, dict[str, Any] | bytes]:
        """Status and content for a request in good order."""
        stream = re.fullmatch(r"/files/([^/]+)/([^/]+)/([^/]+)/file_stream", path)
        with self.lock:
            if path == "/graphql":
                return self._graphql(json.loads(body))
            if stream:
                return self._stream(unquote(stream[2]), unquote(stream[3]), json.loads(body))
            if method == "PUT" and path in self._places:
                files, name = self._places[path]
                files[name] = body
                return 200, {}
            if method == "GET" and path in self._places:
                files, name = self._places[path]
                return (200, files[name]) if name in files else (404, {})
            return (200, {}) if path.startswith("/sdk/otel/") else (404, {"error": f"no {path}"})

    def _stream(self, project: str, name: str, sent: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if name not in self.runs:
            return 404, {"error": f"no run {name}"}
        run = self.runs[name]
        for file, chunk in sent.get("files", {}).items():
            lines = run.streams.setdefault(file, {})
            lines.update(enumerate(chunk["content"], start=chunk["offset"]))
        run.preempting |= bool(sent.get("preempting"))
        if sent.get("complete"):
            ended = "preempted" if run.preempting else "failed"
            run.state = ended if sent.get("exitcode") else "finished"
        return 200, {"exitcode": None, "limits": {}}

    def _graphql(self, sent: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        named = sent.get("operationName") or re.findall(r"(?:query|mutation)\s+(\w+)", sent["query"])[0]
        asked = sent.get("variables") or {}
        reply = getattr(self, "_on_" + re.sub(r"(?<!^)(?=[A-Z])", "_", named).lower(), None)
        if reply is None:
            self.unknown.append(named)
            return 400, {"errors": [{"message": f"the stand-in has no answer to {named}"}]}
        return 200, {"data": reply(asked.get("input", asked))}

    def _on_viewer(self, asked: dict[str, Any]) -> dict[str, Any]:
        teams = {"edges": [{"node": {"name": ENTITY}}]}
        viewer = {"id": "viewer", "entity": ENTITY, "username": "someone", "email": "", "flags": "{}", "teams": teams}
        return {"viewer": viewer}

    def _on_server_features_query(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"serverInfo": {"features": []}}

    def _on_organization_core_weave_organization_i_d(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"entity": {"organization": {"coreWeaveOrganizationId": None}}}

    def _on_get_default_entity(self, asked: dict[str, Any]) -> dict[str, Any]:
        return self._on_viewer(asked)

    def _on_runs(self, asked: dict[str, Any]) -> dict[str, Any]:
        """A page of the runs of a project, as the public API asks for it; a cursor is how many there were before."""
        found = [run for run in self.runs.values() if run.project == asked["project"]]
        if not found:
            return {"project": None}
        start = int(asked.get("cursor") or 0)
        page = found[start : start + asked.get("perPage", 50)]
        edges = [{"node": self._told(run), "cursor": str(start + i)} for i, run in enumerate(page, 1)]
        more = {"endCursor": str(start + len(page)), "hasNextPage": start + len(page) < len(found)}
        runs = {"edges": edges, "pageInfo": more}
        return {"project": {"internalId": "0", "runCount": len(found), "readOnly": True, "runs": runs}}

    def _told(self, run: Run) -> dict[str, Any]:
        shown = {
            **run.status(),
            "state": run.state,
            "sweepName": None,
            "group": None,
            "jobType": None,
            "user": {"name": "S", "username": "s"},
        }
        return {**shown, "createdAt": "2024-05-01T10:00:00Z", "projectId": "0", "systemMetrics": "{}"}

    def _on_project_internal_id(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What a report asks of each of its run sets."""
        known = any(run.project == asked["projectName"] for run in self.runs.values())
        return {"project": {"id": "project", "internalId": "4711"} if known else None}

    def _on_study_run(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Whether a project has a run; a project that has no run at all is not there."""
        run = self.runs.get(asked["name"])
        if not any(other.project == asked["project"] for other in self.runs.values()):
            return {"project": None}
        return {"project": {"run": {"summaryMetrics": json.dumps(run.summary)} if run else None}}

    def _on_get_projects(self, asked: dict[str, Any]) -> dict[str, Any]:
        names = sorted({run.project for run in self.runs.values()})
        told = {"entityName": ENTITY, "createdAt": "2024-05-01T10:00:00Z", "isBenchmark": False, "user": None}
        edges = [{"cursor": name, "node": {"id": name, "name": name, **told}} for name in names]
        return {"models": {"edges": edges, "pageInfo": {"endCursor": None, "hasNextPage": False}}}

    def _on_upsert_view(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Keeps a report as it was sent."""
        self.views.append(asked)
        project = {"id": "project", "name": asked["projectName"], "entityName": asked["entityName"]}
        told = {key: asked.get(key) for key in ("name", "type", "displayName", "description", "spec")}
        return {
            "upsertView": {"view": {"id": "Vmlldzox", "updatedAt": None, "project": project, **told}, "inserted": True}
        }

    def _on_run_full_history(self, asked: dict[str, Any]) -> dict[str, Any]:
        lines = self.runs[asked["name"]].streams.get(HISTORY, {})
        return {"project": {"run": {"history": [lines[number] for number in sorted(lines)]}}}

    def _on_run_resume_status(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The client asks at the beginning of every run, and only then."""
        run = self.runs.get(asked["name"])
        if run is not None:
            run.state, run.preempting, run.opened = "running", False, run.opened + 1
        project = {"id": asked["project"], "name": asked["project"], "entity": {"id": ENTITY, "name": ENTITY}}
        return {"model": {**project, "bucket": run and run.status()}}

    def _on_run_state(self, asked: dict[str, Any]) -> dict[str, Any]:
        run = self.runs.get(asked["name"])
        return {"project": {"run": run and {**run.status(), "state": run.state}}}

    def _on_upsert_bucket(self, asked: dict[str, Any]) -> dict[str, Any]:
        name = asked.get("name") or asked["id"].removeprefix("id-")
        inserted = name not in self.runs
        run = self.runs.setdefault(name, Run(name, asked.get("project") or ""))
        run.asked |= {key: value for key, value in asked.items() if value is not None}
        project = {"id": "project", "name": run.project, "entity": {"id": ENTITY, "name": ENTITY}}
        return {
            "upsertBucket": {
                "bucket": {**run.status(), "description": "", "sweepName": None, "project": project},
                "inserted": inserted,
            }
        }

    def _on_create_run_files(self, asked: dict[str, Any]) -> dict[str, Any]:
        run = self.runs[asked["run"]]
        files = [{"name": name, "uploadUrl": self._place(run.files, name)} for name in asked["files"]]
        return {"createRunFiles": {"runID": run.name, "uploadHeaders": [], "files": files}}

    def _on_artifact_type(self, asked: dict[str, Any]) -> dict[str, Any]:
        name = asked["name"].rpartition("/")[2].partition(":")[0]
        found = self._committed(name)
        return {"project": {"artifact": {"artifactType": {"name": found[0].type}} if found else None}}

    def _on_artifact_by_i_d(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What the client waits for after it has logged an artifact."""
        found = self.artifacts.get(asked["id"])
        return {"artifact": found and found.told([item.id for item in self._committed(found.name)].index(found.id))}

    def _on_fetch_artifact_digest_algorithm(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifactType": None}}

    def _on_create_artifact(self, asked: dict[str, Any]) -> dict[str, Any]:
        """The same content under the same name is the same version, as W&B does."""
        name, digest, project = asked["artifactCollectionName"], asked["digest"], asked["projectName"]
        number = hashlib.sha256(f"{name} {digest}".encode()).hexdigest()[:12]
        kind, by = asked["artifactTypeName"], asked["runName"]
        sent = Artifact(number, name, kind, digest, project, by, asked["metadata"])
        found = self.artifacts.setdefault(number, sent)
        found.aliases += [item["alias"] for item in asked.get("aliases") or [] if item["alias"] not in found.aliases]
        older = [item.id for item in self._committed(name)]
        sequence = {"latestArtifact": {"id": older[-1]} if older else None}
        return {"createArtifact": {"artifact": {"id": number, "state": found.state, "artifactSequence": sequence}}}

    def _on_create_artifact_manifest(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"createArtifactManifest": {"artifactManifest": self._manifest(asked["artifactID"])}}

    def _on_update_artifact_manifest(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"updateArtifactManifest": {"artifactManifest": self._manifest(asked["artifactManifestID"])}}

    def _on_create_artifact_files(self, asked: dict[str, Any]) -> dict[str, Any]:
        nodes = []
        for item in asked["artifactFiles"]:
            found = self.artifacts[item["artifactID"]]
            url = self._place(found.files, item["name"])
            node = {"storagePath": f"stored/{found.id}/{item['name']}", "uploadUrl": url, "uploadHeaders": []}
            nodes.append({"node": {**node, "uploadMultipartUrls": None, "artifact": {"id": found.id}}})
        return {"createArtifactFiles": {"files": {"edges": nodes}}}

    def _on_commit_artifact(self, asked: dict[str, Any]) -> dict[str, Any]:
        found = self.artifacts[asked["artifactID"]]
        found.state = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": found.id, "digest": found.digest}}}

    def _on_use_artifact(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.runs[asked["runName"]].used.append(asked["artifactID"])
        return {"useArtifact": {"artifact": {"id": asked["artifactID"]}}}

    def _manifest(self, artifact: str) -> dict[str, Any]:
        url = self._place(self.artifacts[artifact].files, "wandb_manifest.json")
        return {"id": artifact, "file": {"id": artifact, "uploadUrl": url, "uploadHeaders": []}}

    def _place(self, files: dict[str, bytes], name: str) -> str:
        path = f"/storage/{len(self._places)}"
        self._places[path] = (files, name)
        return self.url + path
