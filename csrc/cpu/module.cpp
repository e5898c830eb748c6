// The Python module object of alt_kernels._C. It is empty: loading the shared library registers the kernels
// (STABLE_TORCH_LIBRARY_IMPL in the other files of this folder). Import torch first, to whose libraries this one is
// linked.

// Without Python's headers the library is built without this object. Only the statement `import alt_kernels._C` is
// lost: the package loads the file with torch.ops.load_library.

#if __has_include(<Python.h>)
#include <Python.h>

extern "C" PyMODINIT_FUNC PyInit__C(void) {
  static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C", "Compiled CPU kernels of alt_kernels.", -1};
  return PyModule_Create(&definition);
}
#endif
