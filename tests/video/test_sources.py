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
