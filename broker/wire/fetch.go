package wire

import "encoding/binary"

// Fetch asks for stored batches from an offset on.
type Fetch struct {
	Correlation uint32
	Topic       []byte
	Offset      uint64
	// MaxBytes bounds the batches of the answer; at least one is given whole.
	MaxBytes uint32
	// WaitMillis is how long the broker may wait for the first record at or after
	// Offset; then it answers without any.
	WaitMillis uint32
}

// FetchBytes is the size of a Fetch.
func FetchBytes(topicLen int) int { return fetchBytes + topicLen }

// AppendFetch appends f.
func AppendFetch(dst []byte, f Fetch) []byte {
	dst = appendHeader(dst, KindFetch, uint8(len(f.Topic)), 0, f.Correlation)
	dst = binary.LittleEndian.AppendUint64(dst, f.Offset)
	dst = binary.LittleEndian.AppendUint32(dst, f.MaxBytes)
	dst = binary.LittleEndian.AppendUint32(dst, f.WaitMillis)
	return append(dst, f.Topic...)
}

// ParseFetch reads a Fetch.
func ParseFetch(p []byte) (Fetch, error) {
	if err := expect(p, KindFetch, fetchBytes); err != nil {
		return Fetch{}, err
	}
	topic, rest, err := topicOf(p[fetchBytes:], int(p[1]), false)
	switch {
	case err != nil:
		return Fetch{}, err
	case len(rest) != 0:
		return Fetch{}, bad("%d bytes behind a Fetch", len(rest))
	case binary.LittleEndian.Uint16(p[2:]) != 0:
		return Fetch{}, bad("unknown flags %#x of a Fetch", binary.LittleEndian.Uint16(p[2:]))
	}
	le := binary.LittleEndian
	return Fetch{le.Uint32(p[4:]), topic, le.Uint64(p[8:]), le.Uint32(p[16:]), le.Uint32(p[20:])}, nil
}

// FetchResponse answers a Fetch.
type FetchResponse struct {
	Correlation uint32
	// HighWatermark is the offset after the topic's last record.
	HighWatermark uint64
	// Entries are whole entries as the log holds them, checksums included
	// (seglog.NextEntry); empty when the wait ended first. The first may begin
	// before the offset asked for, because it is stored and sent whole.
	Entries []byte
}

// FetchResponseHeaderBytes precede the entries.
const FetchResponseHeaderBytes = responseBytes

// AppendFetchResponseHeader appends all but the entries, which follow it.
func AppendFetchResponseHeader(dst []byte, correlation uint32, highWatermark uint64) []byte {
	dst = appendHeader(dst, KindFetchResponse, 0, 0, correlation)
	return binary.LittleEndian.AppendUint64(dst, highWatermark)
}

// ParseFetchResponse reads a FetchResponse. The entries are not looked at.
func ParseFetchResponse(p []byte) (FetchResponse, error) {
	if err := expect(p, KindFetchResponse, responseBytes); err != nil {
		return FetchResponse{}, err
	}
	le := binary.LittleEndian
	return FetchResponse{le.Uint32(p[4:]), le.Uint64(p[8:]), p[responseBytes:]}, nil
}
