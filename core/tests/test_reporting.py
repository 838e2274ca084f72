"""Which loggers a run opens again when it goes back."""

from types import SimpleNamespace

from hekaton.reporting import Reporter


def fails(step, metrics):
    raise ConnectionError("hung up")


def test_a_rollback_opens_loggers_again_but_not_those_that_are_left_out(tmp_path, caplog):
    """Also one to step 0, where a server that is gone ends no run that has begun."""
    opened = []

    def build(kind, name, folder):
        opened.append(name)
        if name == "away" and opened.count(name) == 2:
            raise ConnectionRefusedError(111, "nobody answers")
        return SimpleNamespace(log=fails if name == "broken" else lambda *_: None, close=lambda: None)

    config = SimpleNamespace(
        metrics=SimpleNamespace(log_freq=1, disable_color_printing=True, save_for_all_ranks=False),
        fault=SimpleNamespace(logger_seconds=60.0),
        training=SimpleNamespace(steps=4),
        checkpoint=SimpleNamespace(enable=True),
        job=SimpleNamespace(dump_folder=str(tmp_path)),
        logger_names=lambda: ["broken", "fine", "away"],
    )
    assembled = SimpleNamespace(
        config=config,
        process=SimpleNamespace(rank=0),
        plugins=SimpleNamespace(get=lambda kind, name: SimpleNamespace(place="run")),
        build=build,
    )
    with Reporter(assembled, step=0) as reporter:
        reporter.log(1, {"loss": 1.0})
        reporter.go_back(0)
        reporter.go_back(0)
        reporter.log(1, {"loss": 1.0})
    assert opened == ["broken", "fine", "away", "fine", "away", "fine"]
    told = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert [line.split("'")[1] for line in told] == ["broken", "away"]
