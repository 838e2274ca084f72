"""Which loggers a run opens again when it goes back."""

from types import SimpleNamespace

from hekaton.reporting import Reporter


def fails(step, metrics):
    raise ConnectionError("hung up")


def run_with(tmp_path, build, loggers):
    """As much of a run as a reporter looks at."""
    config = SimpleNamespace(
        metrics=SimpleNamespace(log_freq=1, disable_color_printing=True, save_for_all_ranks=False),
        fault=SimpleNamespace(logger_seconds=60.0),
        training=SimpleNamespace(steps=4),
        checkpoint=SimpleNamespace(enable=True),
        job=SimpleNamespace(dump_folder=str(tmp_path)),
        logger_names=lambda: loggers,
    )
    return SimpleNamespace(
        config=config,
        process=SimpleNamespace(rank=0),
        plugins=SimpleNamespace(get=lambda kind, name: SimpleNamespace(place="run")),
        build=build,
    )


def test_a_rollback_opens_loggers_again_but_not_those_that_are_left_out(tmp_path, caplog):
    """Also one to step 0, where a server that is gone ends no run that has begun."""
    opened = []

    def build(kind, name, folder):
        opened.append(name)
        if name == "away" and opened.count(name) == 2:
            raise ConnectionRefusedError(111, "nobody answers")
        return SimpleNamespace(log=fails if name == "broken" else lambda *_: None, close=lambda: None)

    with Reporter(run_with(tmp_path, build, ["broken", "fine", "away"]), step=0) as reporter:
        reporter.log(1, {"loss": 1.0})
        reporter.go_back(0)
        reporter.go_back(0)
        reporter.log(1, {"loss": 1.0})
    assert opened == ["broken", "fine", "away", "fine", "away", "fine"]
    told = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert [line.split("'")[1] for line in told] == ["broken", "away"]


def test_a_run_that_learns_nothing_is_warned_of_once(tmp_path, caplog):
    with Reporter(run_with(tmp_path, None, []), step=0) as reporter:
        for step, metrics in enumerate(({"loss": 0.0, "grad_norm": 0.5}, {"validation_loss": 0.0}), 1):
            reporter.log(step, metrics)
        assert not caplog.records
        for step in (3, 4):
            reporter.log(step, {"loss": 0.0, "grad_norm": 0.0})
    (told,) = [record.getMessage() for record in caplog.records]
    assert told.startswith("step 3: loss and gradient are 0, nothing is learned")


def test_a_logger_that_would_end_the_process_is_left_out(tmp_path, caplog):
    def exits(*_):
        raise SystemExit(0)

    def build(kind, name, folder):
        return SimpleNamespace(log=exits, close=exits)

    with Reporter(run_with(tmp_path, build, ["mine"]), step=0) as reporter:
        reporter.log(1, {"loss": 1.0})
        reporter.log(2, {"loss": 1.0})
    (told,) = [record.getMessage() for record in caplog.records]
    assert told == "logger 'mine' failed at step 1 and is left out from here on: SystemExit: 0"
