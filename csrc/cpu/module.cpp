// The Python module object of alt_kernels._C. It is empty: loading the shared library is what
// registers the kernels (STABLE_TORCH_LIBRARY_IMPL in the other files of this folder).
// Works after `import torch`, whose libraries this one is linked to.

// Where Python's headers are not installed the library is built without it, which loses nothing but
// the `import alt_kernels._C` statement: the package loads the file with torch.ops.load_library.

#if __has_include(<Python.h>)
#include <Python.h>

extern "C" PyMODINIT_FUNC PyInit__C(void) {
  static struct PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", "Compiled CPU kernels of alt_kernels.", -1, nullptr,
      nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
#endif
