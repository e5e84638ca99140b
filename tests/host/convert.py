"""A workflow file as the page saves it -> the prompt that the page would send, for the nodes that the shipped workflows use."""
from __future__ import annotations

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
NOTES = ("Note", "MarkdownNote")


def inputs_of(definition: dict) -> list[tuple[str, str, dict, object]]:
    """(name, type, options, first choice) of every input in the order of the widgets."""
    found = []
    for group in ("required", "optional"):
        for name, spec in definition["input"].get(group, {}).items():
            options = spec[1] if len(spec) > 1 else {}
            listed = isinstance(spec[0], list)
            choices = spec[0] if listed else options.get("options") or [None]
            found.append((name, "COMBO" if listed else spec[0], options, choices[0] if choices else None))
    return found


def to_prompt(workflow: dict, object_info: dict) -> dict:
    """The API form. Raises KeyError for a node type that the host does not have."""
    links = {link[0]: link for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES or node["mode"] in (2, 4):
            continue
        linked = {i["name"]: links[i["link"]] for i in node["inputs"] if i.get("link")}
        values, inputs = list(node["widgets_values"]), {}
        for name, kind, options, first in inputs_of(object_info[node["type"]]):
            dynamic = kind.startswith("COMFY_DYNAMICCOMBO")
            if kind in WIDGETS or dynamic:
                fallback = options.get("default", "auto" if dynamic else first)
                value = values.pop(0) if values else fallback
                if options.get("control_after_generate") and values:
                    values.pop(0)
                inputs[name] = value
                if dynamic and name == "format":          # the core's Save Video nests its codec below the format
                    inputs["format.codec"] = "auto"
            for key, link in linked.items():              # an input that grows: its parts are called "name.a", "name.b"
                if key == name or key.startswith(f"{name}."):
                    inputs[key] = [str(link[1]), link[2]]
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt
