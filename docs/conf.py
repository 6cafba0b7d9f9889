"""Sphinx: `make docs` writes build/docs.  Examples are run while the pages are built; nothing is fetched."""

from __future__ import annotations

import logging
import os
import shutil
import sys
from pathlib import Path

from ipykernel.kernelspec import write_kernel_spec

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
WORK = ROOT / "build" / "docs-work"  # what the build keeps beside the pages: the kernel's description, compiled code
sys.path[:0] = [str(HERE / "_ext"), str(ROOT)]

import dmft  # noqa: E402  (from this checkout, wherever Sphinx was started)

# Examples run in the interpreter that runs Sphinx, whatever kernels, settings or devices this machine has.
shutil.rmtree(WORK / "jupyter", ignore_errors=True)
write_kernel_spec(
    WORK / "jupyter" / "kernels" / "python3",
    extra_arguments=["--IPKernelApp.log_level=ERROR"],  # not what it says of sharing a machine
)
os.environ |= {
    "JUPYTER_PATH": str(WORK / "jupyter"),
    "JUPYTER_CONFIG_DIR": str(WORK / "jupyter-config"),
    "JUPYTER_RUNTIME_DIR": str(WORK / "jupyter-runtime"),
    "JUPYTER_PLATFORM_DIRS": "1",
    "IPYTHONDIR": str(WORK / "ipython"),
    "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
    "JAX_COMPILATION_CACHE_DIR": str(WORK / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
}

logging.getLogger("traitlets").setLevel(logging.WARNING)  # a line a notebook

project = "dmft-networks"
author = "The authors of dmft-networks"
project_copyright = f"2026, {author}"
version = release = dmft.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "myst_nb",
    "docstrings",
    "generated",
    "static_math",
]
exclude_patterns = ["_ext"]
default_role = "code"
nitpicky = True  # of functions that pages name
nitpick_ignore_regex = [("py:(?!func).*", ".*")]

# pages
myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3
myst_dmath_double_inline = False
nb_execution_mode = "force"  # a cache would not see changes of the library
nb_execution_raise_on_error = True
nb_execution_timeout = 300
nb_execution_show_tb = True
nb_output_stderr = "remove-warn"  # an example that warns fails the build
nb_merge_streams = True

# docstrings
autodoc_member_order = "bysource"
# pages show what examples print, not their progress
os.environ["TQDM_DISABLE"] = "1"
# what matplotlib writes into every class of a figure
autodoc_default_options = {"exclude-members": "set"}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
autosummary_generate = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
python_maximum_signature_line_length = 90
python_use_unqualified_type_names = True
add_module_names = True
toc_object_entries_show_parents = "hide"

# look
highlight_language = "text"
html_theme = "furo"
html_title = f"dmft-networks {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
html_math_renderer = "svg"
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
math_eqref_format = "({number})"
copybutton_prompt_text = "$ "
