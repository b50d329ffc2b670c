"""The page itself: what is where, and which function of `vmamba.app.answers` fills it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio

from vmamba.app import answers
from vmamba.app.models import Models
from vmamba.errors import VMambaError

#: Requests that wait; more are told to try later.
_WAITING = 200
_CLICK = "Click a point of the image: what does the model's scan see from there?"


def build_page(models: Models, examples: Sequence[Path], most_bytes: int) -> Any:
    """The page as Gradio's ``Blocks``, not yet served.

    Args:
        models: what may be chosen.
        examples: image files to try.
        most_bytes: of an uploaded file.
    """

    def checked(file: str | None) -> Path:
        answers.check_image(path := Path(str(file)), most_bytes)
        return path

    def first_look(name: str, file: str | None) -> tuple[Any, ...]:
        """What the model says about a file, and what can be clicked on."""
        nothing = (None, None, gradio.update(value=None, visible=False))
        unmoved = (gradio.update(), gradio.update(value=None))
        if file is None:
            return _CHOOSE, *nothing, *unmoved
        path = Path(file)
        try:
            checked(file)
            trained, device = models.open(name)
            with models.running:
                found = answers.answer(trained, device, path)
                seen = answers.seen_by_model(trained, path)
                count = answers.stages_of(trained)
        except VMambaError as error:
            return f"**{_plain(str(error), path)}**", *nothing, *unmoved
        stages = gradio.update(choices=list(range(count)), value=max(0, count - 2) if count else None)
        return (
            f"`{name}` ({found.task}): {found}",
            dict(found.rows) or None,
            seen,
            gradio.update(value=found.picture, visible=found.picture is not None),
            stages,
            gradio.update(value=None),
        )

    def class_map(name: str, file: str | None, label: int | None = None, stage: int | None = None) -> tuple[Any, ...]:
        """What speaks for a class, and which may be chosen; nothing where there are none, or where `first_look` has
        said why.
        """
        nothing = (gradio.update(value=None, visible=False),) * 3
        try:
            trained, device = models.open(name)
            count = answers.stages_of(trained)
            if file is None or not count:
                return nothing
            depth = count - 1 if stage is None else stage
            with models.running:
                found = answers.class_picture(trained, device, checked(file), label, depth)
        except VMambaError:
            return nothing
        if found is None:
            return nothing
        picture, chosen = found
        choices = [(called, place) for place, called in enumerate(answers.class_names(trained))]
        return (
            gradio.update(value=picture, visible=True),
            gradio.update(choices=choices, value=chosen, visible=True),
            gradio.update(choices=list(range(count)), value=depth, visible=True),
        )

    def look_from(name: str, file: str | None, stage: int | None, event: gradio.SelectData) -> tuple[Any, str]:
        """The scan map of a place that was clicked on."""
        if file is None:
            return None, _CHOOSE
        path = Path(file)
        try:
            trained, device = models.open(name)
            width, height = answers.seen_size(trained)
            at = (event.index[1] / height, event.index[0] / width)
            with models.running:
                picture = answers.scan_picture(trained, device, path, at, -2 if stage is None else int(stage))
        except VMambaError as error:
            return None, f"**{_plain(str(error), path)}**"
        return picture, f"From row {at[0]:.0%}, column {at[1]:.0%} of the image, stage {stage}. {_CLICK}"

    with gradio.Blocks(title="vmamba", analytics_enabled=False) as page:
        gradio.Markdown("# vmamba\nWhat does the model say about your image, and what does it look at?")
        with gradio.Row():
            with gradio.Column(min_width=320):
                name = gradio.Dropdown(list(models.names), value=models.names[0], label="Model")
                file = gradio.File(label="Drop an image here", type="filepath", height=140, elem_id="upload")
                note = gradio.Markdown(_CHOOSE, elem_id="note")
                if examples:
                    gradio.Examples([[str(path)] for path in examples], [file], label="Examples")
                rows = gradio.Label(label="Answer", num_top_classes=answers.TOP, elem_id="answer")
            with gradio.Column(min_width=320):
                seen = gradio.Image(
                    label="As the model sees it: click a point",
                    interactive=False,
                    format="png",
                    type="pil",
                    buttons=[],
                    elem_id="seen",
                )
                overlay = gradio.Image(
                    label="Overlay",
                    interactive=False,
                    visible=False,
                    format="png",
                    buttons=["fullscreen"],
                    elem_id="overlay",
                )
        with gradio.Row():
            stage = gradio.Dropdown([], label="Stage of the scan", type="value", min_width=160, scale=0)
            hint = gradio.Markdown(_CLICK, elem_id="hint")
        scan = _figure("scan", "Scan map", visible=True)
        with gradio.Row():
            with gradio.Column(scale=0, min_width=160):  # a column each, or they share a frame with a grey rest
                label = gradio.Dropdown([], label="Class", visible=False, elem_id="class")
            with gradio.Column(scale=0, min_width=160):
                depth = gradio.Dropdown([], label="Stage of the class map", visible=False)
            gradio.Markdown("Of a classifier or segmenter: which places speak for a class (Grad-CAM)?")
        mapped = [_figure("cam", "Class map", visible=False), label, depth]
        shown = [note, rows, seen, overlay, stage, scan]
        for moved in (name, file):
            said = moved.change(
                first_look,
                [name, file],
                shown,
                api_name="look" if moved is file else None,
                api_visibility="public" if moved is file else "private",
            )
            said.then(class_map, [name, file], mapped, api_visibility="private")
        for chosen in (label, depth):
            chosen.input(class_map, [name, file, label, depth], mapped, api_visibility="private")
        seen.select(look_from, [name, file, stage], [scan, hint], api_visibility="private")
        stage.input(lambda: None, None, [scan], api_visibility="private")
    return page.queue(max_size=_WAITING, default_concurrency_limit=4)


def _figure(place: str, name: str, visible: bool) -> gradio.Image:
    """A figure that has its own title, which a label would cover."""
    buttons: Any = ["download", "fullscreen"]
    return gradio.Image(
        label=name,
        show_label=False,
        interactive=False,
        visible=visible,
        elem_id=place,
        format="png",
        buttons=buttons,
        alt_text=name,
    )


_CHOOSE = "Choose a model, and drop an image or click an example."


def _plain(message: str, path: Path) -> str:
    """A message without the place where the upload lies."""
    return message.replace(str(path), path.name)
