"""Formats of data sets, one a file.

.npz          arrays x, y, or x_train, y_train, x_test, y_test (a zip file, known by content)
IDX           0 0 type n, n big-endian 32-bit sizes, the entries (MNIST and its kin); plain or gzip
CIFAR-10      records of a label and 3,072 pixels, or Python pickles of both
images        a sub-folder of PNG or JPEG files a class, perhaps in train/ and test/
series        NAME_TRAIN.ts and NAME_TEST.ts of the UCR archive
"""
