from .case_runner import ends_all, raise_failed, shown_list  # noqa: F401 - until preprocessing goes
