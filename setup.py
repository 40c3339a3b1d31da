"Copies settings.ini into the wheel, so that the course's profiles have one source (everything else: pyproject.toml)."
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithSettings(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:
            shutil.copy(Path(__file__).parent / "settings.ini", Path(self.build_lib) / "tutorial_clf" / "shipped" / "settings.ini")


setup(cmdclass={"build_py": BuildWithSettings})
