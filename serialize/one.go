package serialize

// EncodeOne lays out r alone as a batch, HeaderBytes and its own bytes, at the front of
// dst, and returns that part. They are the bytes that a Builder makes of it, which needs
// arrays for columns that such a batch does not have. ErrRecordTooLarge: dst, or
// MaxBatchBytes, is too small.
func EncodeOne(dst []byte, r *Record) ([]byte, error) {
	end := HeaderBytes + len(r.Key) + len(r.Value) + len(r.Headers)
	if end > min(len(dst), MaxBatchBytes) {
		return nil, ErrRecordTooLarge
	}
	out := dst[:end:end]
	at := HeaderBytes
	at += copy(out[at:], r.Key)
	at += copy(out[at:], r.Value)
	copy(out[at:], r.Headers)
	l := layoutOfOne(len(r.Key), len(r.Value), len(r.Headers), attributesOf(r), r.Timestamp)
	l.writeHeader(out, &parts{end: end}, updateCRC(0, out[HeaderBytes:]))
	return out, nil
}

// layoutOfOne is the layout of a record alone: no column has a width.
func layoutOfOne(key, value, headers int, attr uint8, timestamp int64) layout {
	return layout{
		records: 1, payload: key + value + headers,
		key: span{min: uint64(key)}, value: span{min: uint64(value)}, header: span{min: uint64(headers)},
		attr: span{min: uint64(attr)}, time: span{min: uint64(timestamp)},
		hasKeys: key > 0, hasHeaders: headers > 0, hasAttrs: attr > 0,
	}
}
