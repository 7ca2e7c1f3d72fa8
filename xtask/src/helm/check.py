# SPDX-License-Identifier: MIT OR Apache-2.0
"""What is asked of Python by `cargo xtask helm`, in one process, since starting it costs half a second.

validate PODMONITOR [VERSION FILE]...   each object of each file against the schemas of that version of Kubernetes,
                                        and PodMonitors, which are not Kubernetes' own, against the file PODMONITOR
json FILE                               a YAML file as JSON
"""
import json
import sys

import jsonschema
import kubernetes_validate
import yaml


def problem(thing, version, monitor):
    """What is wrong with an object, or nothing. An unknown kind is wrong, too."""
    try:
        if thing.get("apiVersion") == "monitoring.coreos.com/v1" and thing.get("kind") == "PodMonitor":
            jsonschema.Draft202012Validator(monitor).validate(thing)
        else:
            kubernetes_validate.validate(thing, version, strict=True)
    except (jsonschema.ValidationError, kubernetes_validate.ValidationError) as error:
        place = ".".join(str(part) for part in error.path)
        return f"{place or 'the object'}: {error.message}"
    except kubernetes_validate.SchemaNotFoundError as error:
        return error.message
    return None


def validate(monitor_file, *pairs):
    with open(monitor_file, encoding="utf-8") as file:
        monitor = json.load(file)
    for version, path in zip(pairs[::2], pairs[1::2]):
        with open(path, encoding="utf-8") as file:
            things = [thing for thing in yaml.safe_load_all(file) if thing is not None]
        for thing in things:
            name = f"{thing.get('kind')} {thing.get('metadata', {}).get('name')}"
            found = problem(thing, version, monitor)
            print(json.dumps({"file": path, "version": version, "object": name, "problem": found}))


def to_json(path):
    with open(path, encoding="utf-8") as file:
        print(json.dumps(yaml.safe_load(file)))


{"validate": validate, "json": to_json}[sys.argv[1]](*sys.argv[2:])
