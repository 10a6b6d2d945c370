"""Progress of a run on the terminal."""

import keras
from rich.console import Console
from rich.progress import BarColumn
from rich.progress import Progress
from rich.progress import TextColumn
from rich.progress import TimeRemainingColumn


class RunProgress(keras.callbacks.Callback):
    """Shows task, step, accuracy so far and time left while `fit()` runs.

    For a `fit()` in which an epoch is a task. Prints nothing if the console is no
    terminal. As a context manager it gives the terminal its cursor back, however the
    `fit()` ends.

    Args:
        num_tasks: Positive integer, the number of tasks.
        steps_per_task: Positive integer, the number of steps of each.
        console: The `rich.console.Console` to write to.
    """

    # Keras may call it from a thread, for it reads no weights and no logs of a batch.
    async_safe = True

    def __init__(self, num_tasks: int, steps_per_task: int, console: Console):
        super().__init__()
        self.num_tasks = num_tasks
        self.steps_per_task = steps_per_task
        self._progress = Progress(
            TextColumn("task {task.fields[number]}/" + str(num_tasks)),
            BarColumn(),
            TextColumn("step {task.fields[step]}/" + str(steps_per_task)),
            TextColumn("{task.fields[accuracy]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._bar = self._progress.add_task(
            "run",
            total=self.num_tasks * self.steps_per_task,
            number=1,
            step=0,
            accuracy="",
        )
        self._progress.start()

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self._epoch = epoch
        self._progress.update(self._bar, number=epoch + 1)

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        step = batch + 1
        done = self._epoch * self.steps_per_task + step
        self._progress.update(self._bar, completed=done, step=step)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        average = (logs or {}).get("average_accuracy", float("nan"))
        accuracy = f"{100 * average:.1f} % on tasks seen"
        self._progress.update(self._bar, accuracy=accuracy)

    def on_train_end(self, logs: dict | None = None) -> None:
        self._progress.stop()

    def __enter__(self) -> "RunProgress":
        return self

    def __exit__(self, *error: object) -> None:
        self._progress.stop()
