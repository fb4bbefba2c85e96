"""Video files in and out: every container, picture sequence and tar shard as frames."""
