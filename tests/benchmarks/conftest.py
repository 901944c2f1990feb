"""Scripts of environments of their own are no tests, and cannot be imported in this one."""

collect_ignore = ["atomai_rival.py", "atomai_serving.py", "http_rival.py", "http_speed.py"]
