# mode: function
# must not: use more memory than its limit
import zlib
def solve(n):
    data = bytes(1 << 24)
    for _ in range(3):
        data = zlib.compress(data, 9)
    packer = zlib.compressobj(9)
    packed = b"".join(packer.compress(bytes(1 << 24)) for _ in range(256)) + packer.flush()
    return len(zlib.decompress(packed))
