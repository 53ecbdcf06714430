"""The cache of runs: nothing made twice, nothing kept forever."""

from __future__ import annotations

from leankv.app.runcache import RecentlyUsed


def test_a_kept_value_is_not_made_again() -> None:
    cache = RecentlyUsed[str](10, len)
    assert cache.get("a", lambda: "one") == "one"
    assert cache.get("a", lambda: "two") == "one"


def test_the_least_recently_used_goes_first() -> None:
    cache = RecentlyUsed[str](6, len)
    cache.get("a", lambda: "aaa")
    cache.get("b", lambda: "bbb")
    cache.get("a", lambda: "")
    cache.get("c", lambda: "ccc")
    assert cache.get("a", lambda: "new") == "aaa"
    assert cache.get("b", lambda: "new") == "new"


def test_a_value_too_heavy_is_kept_alone() -> None:
    cache = RecentlyUsed[str](2, len)
    cache.get("a", lambda: "a")
    cache.get("b", lambda: "heavy")
    assert cache.get("b", lambda: "again") == "heavy"
