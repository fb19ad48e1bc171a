import pytest

from timewalk.config import VideoConfig
from timewalk.errors import UserError
from timewalk.video.sources import load_sources, read_list, resolve_video


def test_ten_walking_tours():
    videos = load_sources()
    assert len(videos) == 10
    assert videos["venice"].source.endswith("fGX0Te6pFvk")
    assert {video.licence for video in videos.values()} == {"CC BY 4.0"}
    assert len({video.source for video in videos.values()}) == 10


def test_alias_override_and_typo():
    assert resolve_video("kuala_lampur", {}) == resolve_video("kuala_lumpur", {})
    own = VideoConfig(source="/here/venice.mp4")
    assert resolve_video("venice", {"venice": own}) is own
    with pytest.raises(UserError, match="unknown video 'venise'; did you mean 'venice'"):
        resolve_video("venise", {})


def test_the_published_list(tmp_path):
    path = tmp_path / "WTour.txt"
    path.write_text(
        "# Walking Tours\n\n"
        "https://www.youtube.com/watch?v=E07rTPgIvn0, Amsterdam\n"
        "https://www.youtube.com/watch?v=jyxIRzlkO_g Chiang Mai\n"
        "https://www.youtube.com/watch?v=yLTycPjm0nk,Kuala_Lampur\n"
    )
    videos = read_list(path)
    assert list(videos) == ["amsterdam", "chiang_mai", "kuala_lumpur"]
    assert all(videos[key].source == load_sources()[key].source for key in videos)


def test_comments_and_faults_of_a_list(tmp_path):
    path = tmp_path / "list.txt"
    path.write_text("\ufeffhttps://a.b/c#d.mp4, Chiang  Mai  # not tried\n", encoding="utf-8")
    assert read_list(path)["chiang_mai"].source == "https://a.b/c#d.mp4"
    for text, message in [
        ("Venice\n", r"list\.txt, line 1: write 'address, name'"),
        ("\nhttps://a.b/c\n", r"list\.txt, line 2: write 'address, name'"),
        ("https://a.b/c, X\nhttps://a.b/d, x\n", r"line 2: a second video named 'x'"),
    ]:
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            read_list(path)
    with pytest.raises(UserError, match=r"none\.txt cannot be read"):
        read_list(tmp_path / "none.txt")
