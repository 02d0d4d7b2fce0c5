# SPDX-License-Identifier: BSD-3-Clause
# The compiled C core; its interface is documented in cffi_build/mtlshm.h.
from typing import Any

ffi: Any
lib: Any
