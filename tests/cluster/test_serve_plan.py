"""What `rankforge serve` makes of its options and files, and what it refuses in one line."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from ray.serve._private.common import DeploymentStatus
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview, DeploymentStatusOverview

from builders.errors import LayoutError, UserError
from cluster.deployed import _state
from cluster.placement import Needs, Node
from cluster.serve_config import ModelConfig, application_name, model_config, model_name, service_config
from cluster.serve_options import ServeOptions
from cluster.serve_plan import Service, planned
from tests.cluster.own_ray import ROOT
from tests.cluster.run_engines import Made, make


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(tmp_path_factory.mktemp("plan"))


def of(service: Service) -> tuple[str, ModelConfig]:
    ((name, config),) = service.models.items()
    return name, config


def test_an_engine_is_served_under_its_folders_name(made: Made) -> None:
    service = planned(ServeOptions(model=str(made.engine("tp2", tp_size=2))))
    name, config = of(service)
    assert (name, config.build, service.url) == ("tp2", {}, "http://127.0.0.1:8000")
    ((_, wanted, most),) = service.wanted
    assert (wanted.tp_size, wanted.on_gpu, wanted.holder_cpus, most) == (2, False, 0, 1)
    assert wanted.rank_bytes > 0 and service.cpus == 3


def test_options_of_a_build_are_those_that_were_given(made: Made) -> None:
    options = ServeOptions(
        model=str(made.folder / "model"), tp_size=2, max_batch_size=8, given=frozenset({"tp_size", "model"})
    )
    name, config = of(planned(options))
    assert (name, config.build) == ("model", {"tp_size": 2})
    assert config.options(model_dir=config.model).given == {"tp_size"}


def test_a_folder_for_every_wish(made: Made) -> None:
    def folder(**build: Any) -> Path:
        return ModelConfig(model="org/name", build=build, engines_dir="/engines").made_dir

    assert folder(tp_size=2) == folder(tp_size=2) != folder(tp_size=4)
    assert folder().parent == Path("/engines") and folder().name.startswith("org-name-")


def test_a_gpu_models_replica_is_a_process_beside_its_ranks() -> None:
    config = model_config({"model": "org/name", "build": {"tp_size": 2, "target": "sm90", "pp_size": 2}})
    ((_, wanted, _),) = Service(
        schema={"http_options": {"host": "x", "port": 1}}, models={"a": config}, is_file=True
    ).wanted
    assert wanted == Needs(tp_size=2, pp_size=2, on_gpu=True, holder_cpus=1)


@pytest.mark.parametrize("name", ["gpt2", "org/name", "a-b/c.d"])
def test_names_of_applications(name: str) -> None:
    assert model_name(application_name(name)) == name and "/" not in application_name(name)


@pytest.mark.parametrize("options", [{"model": "org/my--model"}, {"model": "x", "name": "my--model"}])
def test_a_name_that_would_become_another(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"my--model: -- stands for / .* another with --name"):
        planned(ServeOptions(**options))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "missing fields \\['model'\\]"),
        ({"model": " "}, "model='': is empty"),
        ({"model": "x", "tp_size": 2}, "unknown fields \\['tp_size'\\]"),
        ({"model": "x", "build": {"tp": 2}}, "build: unknown options \\['tp'\\]; there are .*tp_size"),
        ({"model": "x", "build": {"tp_size": "2"}}, "BuildOptions.tp_size='2': must be of type int"),
        ({"model": "x", "replicas": {"least": 2, "most": 1}}, "least=2 most=1"),
        ({"model": "x", "replicas": {"least": 1, "most": 2, "at_start": 3}}, "at_start=3: must be between"),
        ({"model": "x", "replicas": {"target_ongoing": 0}}, "target_ongoing=0: must be more than 0"),
        ({"model": "x", "max_ongoing": 0}, "max_ongoing=0: must be at least 1"),
        ({"model": "x", "cpus_per_rank": 0}, "cpus_per_rank=0: must be more than 0"),
        ({"model": "x", "num_blocks": 0}, "num_blocks=0: must be at least 1"),
        ({"model": "x", "tool_format": "xml"}, "tool_format='xml': must be one of hermes, llama3_json, none"),
        ({"model": "x", "kv_cache_free_gpu_memory_fraction": 3}, "fraction=3: must be more than 0, at most"),
    ],
)
def test_what_a_model_cannot_be_told(args: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as refusal:
        model_config(args)
    assert "\n" not in str(refusal.value)


def test_what_the_service_cannot_be_told() -> None:
    with pytest.raises(UserError, match="max_streams=0: must be more than 0"):
        service_config({"limits": {"max_streams": 0}})
    with pytest.raises(UserError, match="replicas=0: must be at least 1"):
        service_config({"replicas": 0})


def test_where_keys_are_is_the_same_for_every_process() -> None:
    """Each has a folder of its own that it works in."""
    config = service_config({"access": {"keys_file": "~/keys.json"}})
    assert config.access.keys_file == Path.home() / "keys.json"
    with pytest.raises(UserError, match=r"^access: keys_file=keys.json: must be an absolute path"):
        service_config({"access": {"keys_file": "keys.json"}})


@pytest.mark.parametrize(
    ("host", "url"),
    [("0.0.0.0", "http://127.0.0.1:80"), ("::1", "http://[::1]:80"), ("::", "http://[::1]:80")],
)
def test_the_address_as_callers_write_it(host: str, url: str) -> None:
    schema = {"http_options": {"host": host, "port": 80}, "applications": []}
    assert Service(schema=schema, models={}, is_file=False).url == url


def test_the_file_that_comes_with_the_project() -> None:
    file = ROOT / "serve_config.yaml"
    models = {app["name"]: app["args"] for app in yaml.safe_load(file.read_text())["applications"][1:]}
    service = planned(ServeOptions(model=str(file), port=8123, given=frozenset({"model", "port"})))
    assert service.is_file and service.api == "api" and service.url == "http://127.0.0.1:8123"
    assert service.models == {name: model_config(args) for name, args in models.items()}


@pytest.mark.parametrize(
    ("text", "given", "message"),
    [
        ("[]", set(), "not a Serve configuration"),
        ("{}", set(), "has no applications"),
        ("applications: [{name: a, import_path: other:app}]", set(), "there is no model to serve"),
        (
            "applications: [{name: a, import_path: 'cluster.serving:model', route_prefix: null, "
            "args: {model: x, y: 1}}]",
            set(),
            r"serve.yaml: a: ModelConfig: unknown fields \['y'\]",
        ),
        ("applications: [a]", set(), r"applications\[0\]: is no object"),
        ("applications: [{import_path: 'a:b'}]", set(), "name=None: must be a text without /"),
        ("applications: [{name: a/b, import_path: 'a:b'}]", set(), "name='a/b': must be a text without /"),
        ("applications: [{name: a, import_pth: 'a:b'}]", set(), r"a: unknown fields \['import_pth'\]; there"),
        ("applications: [{name: a}]", set(), "applications.0.import_path: Field required"),
        (
            "applications: [{name: a, import_path: 'cluster.serving:model', args: {model: x}}]",
            set(),
            "a: route_prefix='/': models have none; write null",
        ),
        (
            "{http_options: {port: x}, applications: [{name: a, import_path: 'a:b'}]}",
            set(),
            "http_options.port='x': .*integer",
        ),
        (
            "{http_options: {prot: 1}, applications: [{name: a, import_path: 'a:b'}]}",
            set(),
            r"http_options: unknown fields \['prot'\]; there are .*port",
        ),
        ("{models: 1, applications: [{name: a, import_path: 'a:b'}]}", set(), r"unknown fields \['models'\]"),
        (
            "applications: [{name: a, import_path: 'a:b'}, {name: a, import_path: 'a:b', route_prefix: /b}]",
            set(),
            "applications: .*same name|applications.*uplicate|applications.*unique",
        ),
        ("applications: []", {"tp_size"}, "--tp_size: .* says what is served"),
        ("a: [", set(), "is no YAML"),
    ],
)
def test_files_that_are_refused(tmp_path: Path, text: str, given: set[str], message: str) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=message) as refusal:
        planned(ServeOptions(model=str(file), given=frozenset({"model", *given})))
    assert "\n" not in str(refusal.value)


def test_other_refusals(made: Made, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"absent\.yaml: cannot be read"):
        planned(ServeOptions(model=str(tmp_path / "absent.yaml")))
    with pytest.raises(UserError, match="--name=api: is the service's own"):
        planned(ServeOptions(model=str(made.folder / "model"), name="api"))
    with pytest.raises(UserError, match=r"--chat_template=.*cannot be read"):
        planned(ServeOptions(model=str(made.folder / "model"), chat_template=tmp_path / "absent"))


def test_no_node_is_large_enough(made: Made) -> None:
    service = planned(ServeOptions(model=str(made.engine("tp2", tp_size=2))))
    with pytest.raises(LayoutError, match=r"^tp2: tp_size=2 pp_size=1: a stage needs 2 CPU on one node"):
        service.check([Node(name="a", free={"CPU": 1, "memory": 1e12})])
    service.check([Node(name="a", free={"CPU": 2, "memory": 1e12})])


def test_no_room_for_all_that_is_to_start(made: Made) -> None:
    """Though there is for each alone; what comes with the load need not fit."""
    engine = str(made.engine("one"))
    models = {
        "first": model_config({"model": engine, "replicas": {"least": 1, "most": 9}}),
        "second": model_config({"model": engine, "replicas": {"least": 2, "most": 2}}),
    }
    service = Service(schema={"applications": []}, models=models, is_file=True)
    with pytest.raises(
        LayoutError, match=r"^second: replica 2 of 2, .*: tp_size=1 .* needs 1 CPU on one node"
    ):
        service.check([Node(name="a", free={"CPU": 2, "memory": 1e12})])
    service.check([Node(name=name, free={"CPU": 2, "memory": 1e12}) for name in ("a", "b")])


def test_what_serve_waits_for_is_said() -> None:
    said = "Deployment 'Model' has 1 replicas that have taken more than 30s\n to be scheduled."
    states: dict[Any, int] = {}
    model = DeploymentStatusOverview(DeploymentStatus.UPDATING, cast(Any, ""), states, said)
    app = ApplicationStatusOverview(ApplicationStatus.DEPLOYING, "", 1.0, {"Model": model})
    assert _state(app) == f"deploying: {said.replace(chr(10), '')}"
    assert _state(ApplicationStatusOverview(ApplicationStatus.RUNNING, "", 1.0, {})) == "running"


def test_an_engine_takes_no_options_of_a_build(made: Made) -> None:
    options = ServeOptions(model=str(made.engine("one")), tp_size=2, given=frozenset({"tp_size"}))
    with pytest.raises(UserError, match=r"^one: build: tp_size: .* is an engine already"):
        _ = planned(options).wanted


def test_a_model_that_is_not_there_or_has_no_words(made: Made, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^absent: model=.*/absent: no such folder"):
        _ = planned(ServeOptions(model=str(tmp_path / "absent"))).wanted
    engine = tmp_path / "mute"
    shutil.copytree(made.engine("one"), engine)
    shutil.rmtree(engine / "tokenizer")
    with pytest.raises(UserError, match=r"^mute: .* has no tokenizer, and serves texts; name a folder"):
        _ = planned(ServeOptions(model=str(engine))).wanted
    named = ServeOptions(model=str(engine), tokenizer_dir=made.engine("one") / "tokenizer")
    assert planned(named).wanted
    with pytest.raises(UserError, match=r"tokenizer_dir=.*nowhere: no such folder"):
        _ = planned(ServeOptions(model=str(engine), tokenizer_dir=tmp_path / "nowhere")).wanted
