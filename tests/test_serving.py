"""Models that answer on 127.0.0.1: right answers, one clear error for what is hostile, nothing written, and no request lost."""

import asyncio
import concurrent.futures
import io
import re
import shutil
import socket
import subprocess
import sys
import time

import cv2
import numpy as np
import PIL.Image
import pytest
from conftest import ROOT, user_environment

import cifar10_input
from cifar10_main import _tell_apart, main
from hyper_parameters import HyperParameters, from_preset
from resnet_study.data.image_files import read_image
from resnet_study.errors import UsageError
from resnet_study.predictor import Predictor
from resnet_study.run_folder import RunFolder

fastapi, httpx = pytest.importorskip("fastapi"), pytest.importorskip("httpx")
from fastapi.testclient import TestClient  # noqa: E402

from resnet_study.serving import app as serving  # noqa: E402
from resnet_study.serving.served_model import ModelError, ServedModel  # noqa: E402

CAT = (ROOT / "examples" / "cat.jpg").read_bytes()


@pytest.fixture(scope="module")
def run(tmp_path_factory, trained_run):
    return RunFolder(shutil.copytree(trained_run.path, tmp_path_factory.mktemp("runs") / "tiny"))


@pytest.fixture(scope="module")
def client(run):
    config = from_preset("fast")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_HOME", str(run.path))  # no CIFAR-10 there
        models = [ServedModel("shipped", "cifar10", config), ServedModel("tiny", str(run.path), config)]
    assert "is not downloaded" in models[0].neighbours_missing
    return TestClient(serving.make_app(models), base_url=f"http://{serving.HOST}")


def encode(image, kind="PNG"):
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def test_the_answer_is_that_of_the_predictor(client):
    (answer,) = client.post("/api/predict?model=shipped&top=10", content=CAT).json()["answers"]
    (head,) = answer["heads"]
    image = read_image(ROOT / "examples" / "cat.jpg", (32, 32, 3))
    expected = Predictor("cifar10").predict(image[None])[0]
    given = {guess["class_name"]: guess["probability"] for guess in head["guesses"]}
    assert head["guesses"][0]["class_name"] == "cat" and answer["seen"] is None
    np.testing.assert_allclose([given[name] for name in cifar10_input.CIFAR10_CLASSES], expected, atol=1e-6)


def test_a_training_image_is_nearest_to_itself(client, run):
    config = run.read_config(HyperParameters)
    training, _ = cifar10_input.split_data(cifar10_input.load_data(config), config)
    answers = client.post("/api/predict?details=true", content=encode(training.images[7])).json()["answers"]
    assert [answer["model"] for answer in answers] == ["shipped", "tiny"]
    nearest = answers[1]["neighbours"][0]
    names = run.read_class_names()
    assert (nearest["place"], nearest["class_name"]) == (7, names[training.labels[7]])
    assert nearest["similarity"] == pytest.approx(1, abs=1e-3)
    for source in (answers[1]["seen"], answers[1]["heads"][0]["heat"], nearest["source"]):
        assert source.startswith("data:image/webp;base64,")
    assert answers[0]["neighbours"] == []  # their training images are not there


def test_the_page_and_the_description_load_nothing_from_elsewhere(client):
    page = client.get("/")
    assert (
        page.status_code == 200 and "shipped" in page.text and not re.search(r"""(src|href)=["']?https?:""", page.text)
    )
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/", "/api/models", "/api/predict"}
    assert client.get("/docs").status_code == 404
    models = client.get("/api/models").json()
    assert [model["neighbours"] for model in models] == [0, 144]


BOMB = encode(np.zeros((8100, 8100), np.uint8))


def test_what_is_refused_is_received_to_its_end():
    """Else its sender would see a reset connection and no message."""
    pieces = []

    class Request:
        async def stream(self):
            while pieces:
                yield pieces.pop()

    pieces += [bytes(8_000_000)] * 4
    with pytest.raises(fastapi.HTTPException, match="more than 20,000,000 bytes"):
        asyncio.run(serving._receive(Request()))
    assert pieces == []
    pieces += [bytes(8_000_000)] * 4
    assert asyncio.run(serving._receive(Request(), keeps=False)) == b"" and pieces == []


@pytest.mark.parametrize(
    ("content", "flags", "status", "detail"),
    [
        (b"", "", 400, "this file is empty"),
        (b"<svg onload=alert(1)>", "", 400, "no image of a kind that is read"),
        (CAT[:3000], "", 400, "cut off"),
        (BOMB, "", 400, "too many pixels, expected at most 64,000,000"),
        (b"x" * 20_000_001, "", 413, "more than 20,000,000 bytes"),
        (CAT, "?model=unknown", 404, "model must be shipped or tiny"),
        (CAT, "?top=0", 422, "query.top"),
        (CAT, "?topk=2", 422, "parameters are model, top and details, received topk"),
    ],
    ids=["empty", "text", "cut", "bomb", "large", "model", "top", "unknown"],
)
def test_what_is_hostile_gets_one_clear_error_and_writes_nothing(client, content, flags, status, detail, tmp_path, monkeypatch):  # fmt: skip
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    response = client.post(f"/api/predict{flags}", content=content)
    assert response.status_code == status and detail in response.json()["detail"]
    assert "\n" not in response.json()["detail"] and not list(tmp_path.iterdir())


def test_forms_and_pages_of_strangers_are_told_so(client):
    answer = client.post("/api/predict", files={"file": CAT})
    assert answer.status_code == 415 and "curl --data-binary" in answer.json()["detail"]
    for site, status in (("cross-site", 403), ("same-origin", 200)):
        assert client.post("/api/predict", content=CAT, headers={"Sec-Fetch-Site": site}).status_code == status


def test_names_that_strangers_lead_here_are_not_answered(client):
    assert client.get("/", headers={"Host": "example.org"}).status_code == 400


def test_models_of_one_name_are_told_apart(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path / "runs")
    named = [".", "a/x/best.keras", "b/x/best.keras", "cifar10", "./cifar10", "a-x-best.keras"]
    paths = dict(zip(named, named, strict=True)) | {"x": "runs/x", "/backup/x": "/backup/x"}
    shown = [
        "runs",
        "a-x-best.keras",
        "b-x-best.keras",
        "cifar10",
        "cifar10-2",
        "a-x-best.keras-2",
        "runs-x",
        "backup-x",
    ]
    assert list(_tell_apart(paths).values()) == shown


def test_mistakes_of_the_command_line(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["--mode=serve", f"--versions={run.path}", "--value_range=0,4095"]) == 2
    assert "--mode=serve of a run reads no --value_range, received --value_range=0,4095" in capsys.readouterr().err
    assert main(["--mode=serve", "--version=none"]) == 2
    assert "expected a run folder" in capsys.readouterr().err
    with socket.create_server((serving.HOST, 0)) as taken:
        assert main(["--mode=serve", "--versions=cifar10", f"--port={taken.getsockname()[1]}"]) == 2
    assert "give another --port" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "resnet_study.serving.app")
    assert main(["--mode=serve", "--versions=cifar10"]) == 2
    assert "install the extra serve" in capsys.readouterr().err


@pytest.mark.slow
def test_two_hundred_requests_in_parallel_are_all_answered(run, tmp_path):
    """By a server in a process of its own: a run, and an exported file of it."""
    folder = run.path.parent
    assert main(["--mode=export", "--version=tiny", f"--runs_dir={folder}", "--format=onnx", "--compare=20"]) == 0
    (exported,) = run.path.rglob("*.onnx")
    command = [sys.executable, ROOT / "cifar10_main.py", "--mode=serve", f"--versions=tiny,{exported}", "--port=0", f"--runs_dir={folder}"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=user_environment())
    try:
        address = next(line for line in process.stdout if "try the model" in line).split()[4].rstrip(",")
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (200, 40, 40, 3), np.uint8)

        async def ask_all():
            async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=200)) as client:
                asks = (client.post(f"{address}/api/predict?top=1", content=encode(image)) for image in images)
                return await asyncio.gather(*asks)

        responses = asyncio.run(ask_all())
    finally:
        process.terminate()
        process.wait(timeout=20)
    assert [response.status_code for response in responses] == [200] * 200
    resized = np.stack([cv2.resize(image, (32, 32), interpolation=cv2.INTER_AREA) for image in images])
    expected = Predictor(str(run.path)).predict(resized).max(axis=1)
    for number in (0, 1):  # each gets the answer to its own image, from both models
        given = [r.json()["answers"][number]["heads"][0]["guesses"][0]["probability"] for r in responses]
        np.testing.assert_allclose(given, expected, atol=1e-4)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_application_is_as_its_description_says(client):
    """What schemathesis makes of the description: every kind of parameter, right and wrong; a body is a real image or any bytes."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings, strategies
    from schemathesis.specs.openapi.checks import positive_data_acceptance

    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    schema.app = client.app
    bodies = strategies.one_of(strategies.sampled_from([CAT, CAT[:2000], BOMB]), strategies.binary(max_size=2000))

    @given(data=strategies.data())
    @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    def check(data):
        path, method = data.draw(
            strategies.sampled_from([("/", "GET"), ("/api/models", "GET"), ("/api/predict", "POST")])
        )
        mode = data.draw(strategies.sampled_from(list(schemathesis.GenerationMode)))
        case = data.draw(schema[path][method].as_strategy(generation_mode=mode))
        if path == "/api/predict" and data.draw(strategies.booleans()):
            case.body, case.media_type = data.draw(bodies), "application/octet-stream"
        # Any bytes are a body as described, but few are an image.
        case.call_and_validate(base_url=f"http://{serving.HOST}", excluded_checks=[positive_data_acceptance])

    check()


def test_heat_maps_are_computed_one_after_the_other(monkeypatch):
    under_way, most = [], []

    def explain(image, label):
        under_way.append(label)
        most.append(len(under_way))
        time.sleep(0.05)
        under_way.pop()
        return np.zeros(image.shape[:2])

    model = ServedModel("shipped", "cifar10", HyperParameters())
    monkeypatch.setattr(model, "_explainers", dict.fromkeys(model.class_names, explain))
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: model.answer(CAT, 3, details=True), range(8)))
    assert max(most) == 1 and all(answer["heads"][0]["heat"] for answer in answers)


def test_photos_are_not_the_training_images_of_shipped_weights(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(encode(np.zeros((32, 32, 3), np.uint8)))
    config = from_preset("folder", dataset="folder", data_dir=str(tmp_path))
    model = ServedModel("shipped", "cifar10", config)
    assert model.neighbours is None and "was trained on cifar10, received --dataset=folder" in model.neighbours_missing


def test_a_model_that_cannot_answer_is_no_fault_of_the_image(client, monkeypatch):
    def fail(*_):
        raise UsageError("no memory")

    monkeypatch.setattr(Predictor, "predict", fail)
    answer = client.post("/api/predict", content=encode(np.zeros((32, 32, 3), np.uint8)))
    assert answer.status_code == 500 and "could not answer (no memory)" in answer.json()["detail"]
    assert client.post("/api/predict", content=b"text").status_code == 400


def test_a_model_that_cannot_answer_takes_no_answer_from_the_others(client, monkeypatch):
    predict = ServedModel.answer

    def fail(self, *arguments):
        if self.name == "tiny":
            raise ModelError("tiny could not answer (no memory)")
        return predict(self, *arguments)

    monkeypatch.setattr(ServedModel, "answer", fail)
    shipped, tiny = client.post("/api/predict", content=CAT).json()["answers"]
    assert shipped["heads"][0]["guesses"][0]["class_name"] == "cat" and shipped["problem"] is None
    assert (tiny["model"], tiny["problem"], tiny["heads"]) == ("tiny", "tiny could not answer (no memory)", [])
    assert client.post("/api/predict?model=tiny", content=CAT).status_code == 500


def test_a_fault_of_the_program_is_told_as_json(run, monkeypatch):
    monkeypatch.setattr(ServedModel, "answer", lambda *_: 1 / 0)
    app = serving.make_app([ServedModel("tiny", str(run.path), from_preset("fast"))])
    client = TestClient(app, base_url=f"http://{serving.HOST}", raise_server_exceptions=False)
    answer = client.post("/api/predict", content=CAT)
    assert answer.status_code == 500 and "the program failed: ZeroDivisionError" in answer.json()["detail"]


def test_a_name_that_is_no_text_is_shown(run):
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    model = ServedModel(name, str(run.path), from_preset("fast"))
    client = TestClient(serving.make_app([model]), base_url=f"http://{serving.HOST}")
    (found,) = client.get("/api/models").json()
    assert client.get("/").status_code == 200 and found["name"].startswith("caf")
    assert client.post("/api/predict?model=other", content=CAT).status_code == 404
