"""The JSON Schema of recipes, made from the config classes, for editors that complete and check YAML."""

from __future__ import annotations

from typing import Any

from nalanda.stages.verbs import VERBS, stage_of


def recipe_schema() -> dict[str, Any]:
    """A schema (draft 2020-12) that accepts one stage's config or a pipeline of stages."""
    definitions: dict[str, Any] = {}
    single: list[dict[str, Any]] = []
    nested: list[dict[str, Any]] = []
    for verb in VERBS:
        body = stage_of(verb).config.model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(body.pop("$defs", {}))
        body["required"] = sorted({*body.get("required", []), "verb"})
        definitions[f"stage_{verb}"] = body
        nested.append({"$ref": f"#/$defs/stage_{verb}"})
        extra = {"name": {"type": "string"}, "about": {"type": "string"}}
        alone = {**body, "properties": {**extra, **body["properties"]}}
        definitions[f"recipe_{verb}"] = alone
        single.append({"$ref": f"#/$defs/recipe_{verb}"})
    pipeline = {
        "type": "object",
        "additionalProperties": False,
        "required": ["stages"],
        "properties": {
            "name": {"type": "string", "description": "names the folder under runs/"},
            "about": {"type": "string", "description": "one sentence for the report"},
            "output": {"type": "string", "description": "the stage that stands for the whole run"},
            "stages": {"type": "object", "additionalProperties": {"oneOf": nested}},
        },
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Nalanda recipe",
        "anyOf": [*single, pipeline],
        "$defs": dict(sorted(definitions.items())),
    }
