package serialize

// Info is what the header of a batch says.
type Info struct {
	Records     int
	Bytes       int // of the batch as it is
	PlainBytes  int // of the batch uncompressed; the same unless it is compressed
	Compression Compression
}

// Check is for whoever passes a batch on or stores it, and has no use for its
// records: it checks the batch at the start of b as far as that goes without
// decompressing it. One that is not compressed is checked as Open does. Of a
// compressed one the checksum and the header are right afterwards, but only a
// Decoder can tell whether its body decompresses to what the header describes.
// Errors as Open's; it allocates only where it fails.
func Check(b []byte) (Info, error) {
	b, err := whole(b, true)
	if err != nil {
		return Info{}, err
	}
	var batch Batch
	if Compression(b[offCompression]) == None {
		if err := batch.view(b); err != nil {
			return Info{}, err
		}
		return Info{batch.n, len(b), len(b), None}, nil
	}
	var p parts
	if err := batch.parseHeader(b, &p); err != nil {
		return Info{}, err
	}
	return Info{batch.n, len(b), p.end, Compression(b[offCompression])}, nil
}
