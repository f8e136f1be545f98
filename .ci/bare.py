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
# Imported by pytest only, and by whoever has SQLAlchemy.
OPTIONAL = ("reliakit.testing.pytest_plugin", "reliakit.integrations.sqlalchemy")
for module in pkgutil.walk_packages(reliakit.__path__, "reliakit."):
    if module.name not in OPTIONAL:
        importlib.import_module(module.name)

with configure_logging(service="bare", env="production"):
    get_logger("bare").info("It works", password="hunter2")
assert CircuitBreaker().call(len, "abc") == 3
assert RateLimiter("1/min").hit("a")
print("every module of the wheel imports in a bare environment")
