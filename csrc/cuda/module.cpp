// The Python module object of alt_kernels._C_cuda. It is empty: loading the library is what registers the kernels.

#if __has_include(<Python.h>)
#include <Python.h>

extern "C" PyMODINIT_FUNC PyInit__C_cuda(void) {
  static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_C_cuda", "Compiled CUDA kernels of alt_kernels.",
                                          -1};
  return PyModule_Create(&definition);
}
#endif
