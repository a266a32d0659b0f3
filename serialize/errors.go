package serialize

import "errors"

var (
	// ErrFull refuses a record because it does not fit into what is left of the
	// batch; close the batch and append the record to the next one.
	ErrFull = errors.New("serialize: batch full: finish it and append to the next")
	// ErrRecordTooLarge refuses a record that would not fit into an empty batch
	// either.
	ErrRecordTooLarge = errors.New("serialize: record larger than a whole batch (raise the batch size or split the record)")

	// ErrNotBatch says that the bytes are something else.
	ErrNotBatch = errors.New("serialize: not a batch")
	// ErrVersion says that the batch has a version this reader does not know: it
	// was written by an earlier or a later millrace.
	ErrVersion = errors.New("serialize: unknown batch version (use a writer and a reader of the same format version)")
	// ErrFeatures says that the batch uses features this reader does not know.
	ErrFeatures = errors.New("serialize: unknown batch features (upgrade the reader)")
	// ErrTruncated says that the bytes end before the batch does.
	ErrTruncated = errors.New("serialize: truncated batch")
	// ErrChecksum says that the bytes changed since the batch was written.
	ErrChecksum = errors.New("serialize: batch checksum mismatch")
	// ErrCorrupt says that the batch contradicts itself though its checksum may
	// hold: its writer is broken or hostile.
	ErrCorrupt = errors.New("serialize: corrupt batch")
	// ErrCompressed says that the batch is compressed where views of it were asked
	// for: open it with a Decoder.
	ErrCompressed = errors.New("serialize: compressed batch (open it with a Decoder)")
	// ErrTooLarge says that a compressed batch claims more bytes than its reader
	// is ready to hold; nothing was allocated for it.
	ErrTooLarge = errors.New("serialize: batch larger than its reader takes (raise the Decoder's limit)")
)
