"""What a user has right after `pip install reliakit`: everything imports, and what needs an extra says so."""

import importlib
import pkgutil
import sys

import reliakit
from reliakit import CircuitBreaker, RateLimiter, configure_logging, get_logger

if "jsonschema_rs" in sys.modules or importlib.util.find_spec("pytest"):
    sys.exit("this environment is not bare")

for name in reliakit.__all__:
    getattr(reliakit, name)
FOR_PYTEST = ("reliakit.testing.pytest_plugin", "reliakit.testing.store_suite")
for module in pkgutil.walk_packages(reliakit.__path__, "reliakit."):
    if module.name in FOR_PYTEST:
        continue
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        # An integration is imported by whoever has the library that it is for.
        if not module.name.startswith("reliakit.integrations.") or str(error.name).startswith("reliakit"):
            raise

with configure_logging(service="bare", env="production"):
    get_logger("bare").info("It works", password="hunter2")
assert CircuitBreaker().call(len, "abc") == 3
assert RateLimiter("1/min").hit("a")
print("every module of the wheel imports in a bare environment")
