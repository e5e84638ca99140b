"""Nothing half written ever has the final name."""
import pytest

from vdd_model.media.files import write_whole, written_aside


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_there_whole_or_as_it_was(tmp_path, durable):
    path = tmp_path / "a.txt"
    with written_aside(path, durable=durable) as aside:
        aside.write_text("new")
        assert not path.exists() and aside.parent == tmp_path
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(KeyboardInterrupt), written_aside(path, ending=".txt") as aside:
        aside.write_text("half")
        assert aside.suffix == ".txt"
        raise KeyboardInterrupt
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]
    write_whole(path, "third", durable=durable)
    assert path.read_text() == "third" and list(tmp_path.iterdir()) == [path]
