"""Imported first by every example that needs the package: where it is not installed, one sentence says so."""

HOW = (
    "The examples need the installed package. Run `pip install -e .` in the checkout, or `make quickstart`,"
    " which sets up an environment by itself."
)

try:
    import modeling_romebert  # noqa: F401
except ModuleNotFoundError as error:
    raise SystemExit(f"{HOW} ({error})") from None
except ImportError as error:  # its message says what to do
    raise SystemExit(str(error)) from None
