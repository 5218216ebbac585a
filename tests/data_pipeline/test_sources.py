"""Sources of every kind: found, read, prepared; what breaks them, and what then happens."""


def test_the_store_of_the_bundled_shard_is_that_of_earlier_versions(store):
    """Of commit f2f0107, before there were other sources than parquet: runs resume with it."""
    assert store.path.name == "quickstart-935dc3dfd2d5"
    assert store.hash == "84c3c81dabc9f759fb19e139ee69aa3649aa78c3b962cf1b2cfc2ebda8e79e8d"
