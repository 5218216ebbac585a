"""Where a wheel has the packages: nothing but gptjax is at the top of site-packages.

`configs` and `data_pipeline` are names that others use, too. A wheel has them in the folder
gptjax/_packages, which gptjax/__init__.py puts on sys.path. An editable install leaves them where
they are. Everything else is in pyproject.toml.
"""

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """Copies the packages; the folder of a wheel differs from that of the checkout."""

    def finalize_options(self) -> None:  # noqa: D102
        super().finalize_options()
        if self.editable_mode:
            return
        moved = {name: self._place(name) for name in self.packages}
        self.package_dir = {place: name.replace(".", "/") for name, place in moved.items()}
        self.package_data = {
            self._place(name) if name else name: files for name, files in self.package_data.items()
        }
        self.packages = list(moved.values())

    @staticmethod
    def _place(package: str) -> str:
        top = package.partition(".")[0]
        return package if top == "gptjax" else f"gptjax._packages.{package}"


setup(cmdclass={"build_py": BuildPy})
