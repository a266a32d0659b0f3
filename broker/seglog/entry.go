package seglog

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
)

const (
	segmentMagic   = "MLSG"
	segmentVersion = 1
	// SegmentHeaderBytes precede the first entry of a segment.
	SegmentHeaderBytes = 24

	entryMagic = "MLRE"
	// EntryHeaderBytes precede each batch.
	EntryHeaderBytes = 28
	// MaxPayloadBytes bounds one batch: the largest buffer of package hugepages. A
	// header that announces more is damage.
	MaxPayloadBytes = 64 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Entry describes one stored batch.
type Entry struct {
	Base    uint64 // offset of its first record
	Records uint32
	Payload []byte // the batch; a view of what was parsed

	payloadCRC uint32
}

// End is the offset after the last record.
func (e *Entry) End() uint64 { return e.Base + uint64(e.Records) }

// Verify checks the payload against the CRC that was stored with it.
func (e *Entry) Verify() error {
	if got := crc32.Checksum(e.Payload, castagnoli); got != e.payloadCRC {
		return fmt.Errorf("the batch at offset %d does not match its checksum (stored %08x, is %08x)", e.Base, e.payloadCRC, got)
	}
	return nil
}

// NextEntry cuts the first entry off data, as Log.Read returns it. ok is false at
// the end of data and where what follows is no whole entry; the payload's CRC is
// left to Entry.Verify.
func NextEntry(data []byte) (e Entry, rest []byte, ok bool) {
	h, n, reason := parseEntryHeader(data)
	if reason != "" || n > len(data)-EntryHeaderBytes {
		return Entry{}, data, false
	}
	h.Payload = data[EntryHeaderBytes : EntryHeaderBytes+n : EntryHeaderBytes+n]
	return h, data[EntryHeaderBytes+n:], true
}

// parseEntryHeader returns the entry without payload and the payload's length;
// reason is not empty if p does not begin with an intact header.
func parseEntryHeader(p []byte) (e Entry, payloadBytes int, reason string) {
	if len(p) < EntryHeaderBytes {
		return e, 0, "the entry header is not whole"
	}
	p = p[:EntryHeaderBytes]
	if string(p[:4]) != entryMagic {
		return e, 0, "no entry begins there"
	}
	if crc32.Checksum(p[:24], castagnoli) != binary.LittleEndian.Uint32(p[24:]) {
		return e, 0, "the entry header does not match its checksum"
	}
	n := binary.LittleEndian.Uint32(p[4:])
	e = Entry{Base: binary.LittleEndian.Uint64(p[8:]), Records: binary.LittleEndian.Uint32(p[16:]), payloadCRC: binary.LittleEndian.Uint32(p[20:])}
	if n == 0 || n > MaxPayloadBytes || e.Records == 0 {
		return e, 0, "the entry header has impossible values"
	}
	return e, int(n), ""
}

// appendEntryHeader appends the header of an entry to dst.
func appendEntryHeader(dst []byte, base uint64, b Batch) []byte {
	at := len(dst)
	dst = append(dst, entryMagic...)
	dst = binary.LittleEndian.AppendUint32(dst, uint32(len(b.Payload)))
	dst = binary.LittleEndian.AppendUint64(dst, base)
	dst = binary.LittleEndian.AppendUint32(dst, b.Records)
	dst = binary.LittleEndian.AppendUint32(dst, crc32.Checksum(b.Payload, castagnoli))
	return binary.LittleEndian.AppendUint32(dst, crc32.Checksum(dst[at:], castagnoli))
}

func segmentHeader(base uint64) []byte {
	p := append(make([]byte, 0, SegmentHeaderBytes), segmentMagic...)
	p = binary.LittleEndian.AppendUint16(p, segmentVersion)
	p = binary.LittleEndian.AppendUint16(p, 0)
	p = binary.LittleEndian.AppendUint64(p, base)
	p = binary.LittleEndian.AppendUint32(p, 0)
	return binary.LittleEndian.AppendUint32(p, crc32.Checksum(p, castagnoli))
}

// checkSegmentHeader compares p with the header of a segment from base on.
func checkSegmentHeader(p []byte, base uint64) (reason string) {
	switch {
	case string(p[:4]) != segmentMagic:
		return "it is not a millrace segment"
	case binary.LittleEndian.Uint16(p[4:]) != segmentVersion:
		return fmt.Sprintf("it has format version %d, this release reads %d", binary.LittleEndian.Uint16(p[4:]), segmentVersion)
	case crc32.Checksum(p[:20], castagnoli) != binary.LittleEndian.Uint32(p[20:]):
		return "the segment header does not match its checksum"
	case binary.LittleEndian.Uint64(p[8:]) != base:
		return fmt.Sprintf("it begins with offset %d, its name says %d", binary.LittleEndian.Uint64(p[8:]), base)
	}
	return ""
}
