package wire

import "encoding/binary"

// Metadata asks for the offsets of one topic, or of all if Topic is empty.
type Metadata struct {
	Correlation uint32
	Topic       []byte
}

// MetadataBytes is the size of a Metadata.
func MetadataBytes(topicLen int) int { return HeaderBytes + topicLen }

// AppendMetadata appends m.
func AppendMetadata(dst []byte, m Metadata) []byte {
	return append(appendHeader(dst, KindMetadata, uint8(len(m.Topic)), 0, m.Correlation), m.Topic...)
}

// ParseMetadata reads a Metadata.
func ParseMetadata(p []byte) (Metadata, error) {
	if err := expect(p, KindMetadata, HeaderBytes); err != nil {
		return Metadata{}, err
	}
	topic, rest, err := topicOf(p[HeaderBytes:], int(p[1]), true)
	switch {
	case err != nil:
		return Metadata{}, err
	case len(rest) != 0:
		return Metadata{}, bad("%d bytes behind a Metadata", len(rest))
	}
	return Metadata{binary.LittleEndian.Uint32(p[4:]), topic}, nil
}

// TopicInfo is what a broker says about one topic.
type TopicInfo struct {
	Topic            string
	Earliest, Latest uint64 // first offset held; offset after the last record
}

// MetadataResponse answers a Metadata.
type MetadataResponse struct {
	Correlation uint32
	Durability  uint8 // of acknowledgements: seglog.Durability
	Topics      []TopicInfo
}

// MetadataResponseBytes is the size of a MetadataResponse.
func MetadataResponseBytes(topics []TopicInfo) int {
	n := HeaderBytes
	for _, t := range topics {
		n += topicInfoBytes + len(t.Topic)
	}
	return n
}

// AppendMetadataResponse appends m, of at most MaxTopicInfos topics.
func AppendMetadataResponse(dst []byte, m MetadataResponse) []byte {
	dst = appendHeader(dst, KindMetadataResponse, m.Durability, uint16(len(m.Topics)), m.Correlation)
	for _, t := range m.Topics {
		dst = binary.LittleEndian.AppendUint64(dst, t.Earliest)
		dst = binary.LittleEndian.AppendUint64(dst, t.Latest)
		dst = append(dst, uint8(len(t.Topic)))
		dst = append(dst, t.Topic...)
	}
	return dst
}

// ParseMetadataResponse reads a MetadataResponse. Unlike the data path's parsers
// it copies the names.
func ParseMetadataResponse(p []byte) (MetadataResponse, error) {
	if err := expect(p, KindMetadataResponse, HeaderBytes); err != nil {
		return MetadataResponse{}, err
	}
	le := binary.LittleEndian
	m := MetadataResponse{Correlation: le.Uint32(p[4:]), Durability: p[1]}
	n := int(le.Uint16(p[2:]))
	p = p[HeaderBytes:]
	if n > len(p)/topicInfoBytes {
		return MetadataResponse{}, bad("a MetadataResponse of %d topics and %d bytes", n, len(p))
	}
	for range n {
		if len(p) < topicInfoBytes {
			return MetadataResponse{}, bad("a MetadataResponse ends within its topics")
		}
		topic, rest, err := topicOf(p[topicInfoBytes:], int(p[16]), false)
		if err != nil {
			return MetadataResponse{}, err
		}
		m.Topics = append(m.Topics, TopicInfo{string(topic), le.Uint64(p), le.Uint64(p[8:])})
		p = rest
	}
	if len(p) != 0 {
		return MetadataResponse{}, bad("%d bytes behind a MetadataResponse", len(p))
	}
	return m, nil
}
