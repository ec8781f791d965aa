"""What a published contract (AsyncAPI, OpenAPI, JSON Schema) promises, and which promises another one breaks.

A contract is read into flat promises, so that the last release's fit into one file: contracts/baseline.json, written
by `python docs/generate.py --release`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

METHODS = ("get", "put", "post", "delete", "patch")

# What is promised, as "kind name", with the alternatives that its type allows (none where it has no type).
Promises = dict[str, list[str]]


def promises(contract: Mapping[str, Any]) -> Promises:
    found: Promises = {}
    for path, methods in contract.get("paths", {}).items():
        for method in METHODS:
            if method in methods:
                found |= _of_route(f"{method.upper()} {path}", methods[method])
    found |= {f"topic {name}": [] for name in contract.get("channels", {})}
    shapes = contract.get("components", {}).get("schemas", {}) | contract.get("$defs", {})
    if "properties" in contract:
        shapes = {contract.get("title", ""): contract, **shapes}
    for name, schema in shapes.items():
        found |= _of_shape(name, schema)
    return found


def _of_route(route: str, operation: Mapping[str, Any]) -> Promises:
    found: Promises = {f"route {route}": []}
    for parameter in operation.get("parameters", ()):
        name = f"{route} {parameter['in']} {parameter['name']}"
        found[f"field {name}"] = sorted(_types(parameter.get("schema", {})))
        if parameter.get("required"):
            found[f"required {name}"] = []
    for kind, body in operation.get("requestBody", {}).get("content", {}).items():
        schema = body.get("schema", {})
        found |= _of_shape(f"{route} {kind}", schema)
        for name, own in schema.get("$defs", {}).items():
            found |= _of_shape(f"{route} {name}", own)
    return found


def _of_shape(name: str, schema: Mapping[str, Any]) -> Promises:
    return {
        **{f"field {name}.{field}": sorted(_types(shape)) for field, shape in schema.get("properties", {}).items()},
        **{f"required {name}.{field}": [] for field in schema.get("required", ())},
        **{f"value {name}.{value}": [] for value in schema.get("enum", ())},
    }


def _types(schema: Any) -> frozenset[str]:
    """The alternatives that a field's schema allows, as words: its type, reference or constant."""
    if not isinstance(schema, dict):
        return frozenset({str(schema)})
    if alternatives := schema.get("anyOf") or schema.get("oneOf"):
        return frozenset().union(*(_types(each) for each in alternatives))
    if "$ref" in schema:
        return frozenset({schema["$ref"].rsplit("/", 1)[-1]})
    if schema.get("type") == "array":
        return frozenset(f"list of {each}" for each in _types(schema.get("items", {})))
    return frozenset({str(schema.get("type", "anything"))})


def breaks(old: Promises, new: Promises) -> Iterator[str]:
    """What a consumer or caller of `old` would stumble over in `new`: things gone, retyped, or newly required."""
    for promise, types in old.items():
        kind, _, name = promise.partition(" ")
        # What is no longer required harms nobody who gave it.
        if promise not in new and kind != "required":
            yield f"{kind} {name} is gone"
        elif kind == "field" and not set(types) <= set(new[promise]):
            yield f"field {name} was retyped"
    for promise in new.keys() - old.keys():
        kind, _, name = promise.partition(" ")
        if kind == "required" and _asks_more(name, old):
            yield f"field {name} is newly required"


def _asks_more(name: str, old: Promises) -> bool:
    """Whether old callers or readers knew the thing, and could do without this field."""
    if f"field {name}" in old:
        return True
    # A new parameter or a new field of a body that must be given: callers don't know it.
    method, _, rest = name.partition(" ")
    return method.lower() in METHODS and f"route {method} {rest.split(' ', 1)[0]}" in old
