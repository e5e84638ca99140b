"""Schemas, help pages, translations and workflow files, without a host."""
import asyncio
import importlib.util
import json
import logging
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
IDS = ["VDDLoadCheckpoint", "VDDEncodeClip", "VDDSampler", "VDDSigmas", "VDDDecode", "VDDDeblurVideo", "VDDDeblurFrames", "VDDCompare",
       "VDDSynthesizeBlur", "VDDPrior"]
WIDGETS = {"INT", "FLOAT", "STRING", "COMBO", "BOOLEAN"}


def test_ids_never_change(pack):
    assert list(pack.nodes) == IDS


@pytest.mark.parametrize("node_id", IDS)
def test_widgets_that_may_be_left_out_come_last(pack, node_id):
    """Saved graphs hold widget values by position: what is added later must be optional and behind the others."""
    optional = [bool(v.keywords.get("optional")) for v in pack.nodes[node_id].GET_SCHEMA().inputs if v.io_type in WIDGETS]
    assert len(set(optional)) <= 2


@pytest.mark.parametrize("node_id", IDS)
def test_help_pages(pack, node_id):
    """In English and in Chinese, under the node's name there."""
    words, text = json.loads((ROOT / "locales/zh/nodeDefs.json").read_text()), (ROOT / f"web/docs/{node_id}.md").read_text()
    assert text.startswith(f"# {pack.nodes[node_id].GET_SCHEMA().display_name}\n") and len(text) > 200
    assert (ROOT / f"web/docs/{node_id}/zh.md").read_text().startswith(f"# {words[node_id]['display_name']}\n")


def test_what_people_search_for_is_found(pack, monkeypatch):
    """By the aliases, on hosts that know them."""
    found = []
    monkeypatch.setattr(pack.module("nodes.streaming"), "schema", lambda search_aliases, **_: found.append(search_aliases))
    for node in ("VDDDeblurVideo", "VDDDeblurFrames"):
        pack.nodes[node].define_schema()
    for word in ("unblur", "deblur", "shake", "sharpen", "去模糊"):
        assert all(any(word in alias for alias in aliases) for aliases in found) and len(found) == 2


def test_english_names_are_those_of_the_schemas(pack):
    words = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text())
    assert set(words) == set(IDS)
    for node_id, entry in words.items():
        schema = pack.nodes[node_id].GET_SCHEMA()
        assert (entry["display_name"], entry["description"]) == (schema.display_name, schema.description)
        assert {k: v["tooltip"] for k, v in entry["inputs"].items()} == {v.id: v.keywords["tooltip"] for v in schema.inputs}
        assert [v["tooltip"] for v in entry["outputs"].values()] == [v.keywords["tooltip"] for v in schema.outputs]


def test_chinese_is_complete():
    en, zh = (json.loads((ROOT / "locales" / language / "nodeDefs.json").read_text()) for language in ("en", "zh"))
    assert set(en) == set(zh)
    for node_id in en:
        for part in ("inputs", "outputs"):
            assert set(en[node_id][part]) == set(zh[node_id][part])
            assert all(v["name"] and v["tooltip"] for v in zh[node_id][part].values())


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_workflow_file_is_sound(pack, path):
    workflow = json.loads(path.read_text())
    nodes = {n["id"]: n for n in workflow["nodes"]}
    for link, source, output, target, entry, kind in workflow["links"]:
        assert link in nodes[source]["outputs"][output]["links"]
        assert nodes[target]["inputs"][entry]["link"] == link
        assert nodes[source]["outputs"][output]["type"] == kind
    for node in nodes.values():
        if not node["type"].startswith("VDD"):
            continue
        schema = pack.nodes[node["type"]].GET_SCHEMA()
        assert [i["name"] for i in node["inputs"]] == [v.id for v in schema.inputs if v.io_type not in WIDGETS]
        ordered = sorted((v for v in schema.inputs if v.io_type in WIDGETS), key=lambda v: bool(v.keywords.get("optional")))
        names = [name for v in ordered for name in ([v.id, "control"] if v.keywords.get("control_after_generate") else [v.id])]
        assert len(node["widgets_values"]) == len(names)
        for name, value in zip(names, node["widgets_values"]):
            if name == "checkpoint":
                assert value == pack.module("nodes.folders").BUILT_IN
    assert any(n["type"] == "MarkdownNote" for n in nodes.values())
    thumbnail = path.with_suffix(".jpg").read_bytes()
    assert thumbnail[:2] == b"\xff\xd8" and len(thumbnail) < 200_000


def test_without_a_host_one_sentence_is_logged(caplog, monkeypatch):
    spec = importlib.util.spec_from_file_location("lonely_pack", ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
    door = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "lonely_pack", door)
    for name in ("comfy_api", "comfy_api.latest"):
        monkeypatch.setitem(sys.modules, name, None)
    spec.loader.exec_module(door)
    with caplog.at_level(logging.ERROR), pytest.raises(ImportError):
        asyncio.run(door.comfy_entrypoint())
    assert "the nodes are not available on this ComfyUI" in caplog.text
