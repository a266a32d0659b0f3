package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// Golden bytes of every kind of frame: a change here is a change of the protocol
// and needs a new Version.
func TestGolden(t *testing.T) {
	for _, tc := range []struct {
		name  string
		frame []byte
		want  string
		parse func(p []byte) (any, error)
		value any
	}{
		{"Hello", AppendHello(nil, Hello{Version, RoleBroker, 2, 4 << 20}),
			"0103010000000000 4d4c5242 00004000 02000000",
			func(p []byte) (any, error) { return ParseHello(p) }, Hello{1, RoleBroker, 2, 4 << 20}},
		{"Produce", append(AppendProduceHeader(nil, 7, "orders"), "batch"...),
			"0206000007000000 6f7264657273 6261746368",
			func(p []byte) (any, error) { return ParseProduce(p) }, Produce{7, []byte("orders"), []byte("batch")}},
		{"ProduceAck", AppendAcks(nil, []Ack{{7, 1000}, {8, 1001}}),
			"0300020000000000 07000000e803000000000000 08000000e903000000000000",
			func(p []byte) (any, error) {
				a, err := ParseAcks(p)
				if err != nil {
					return nil, err
				}
				var all []Ack
				for i := range a.Len() {
					all = append(all, a.At(i))
				}
				return all, nil
			}, []Ack{{7, 1000}, {8, 1001}}},
		{"Error", AppendError(nil, &Error{9, OffsetOutOfRange, 3, 5, "no"}),
			"0400050009000000 0300000000000000 0500000000000000 6e6f",
			func(p []byte) (any, error) { return ParseError(p) }, &Error{9, OffsetOutOfRange, 3, 5, "no"}},
		{"Fetch", AppendFetch(nil, Fetch{1, []byte("t"), 258, 65536, 500}),
			"0501000001000000 0201000000000000 00000100 f4010000 74",
			func(p []byte) (any, error) { return ParseFetch(p) }, Fetch{1, []byte("t"), 258, 65536, 500}},
		{"FetchResponse", append(AppendFetchResponseHeader(nil, 1, 99), "entries"...),
			"0600000001000000 6300000000000000 656e7472696573",
			func(p []byte) (any, error) { return ParseFetchResponse(p) }, FetchResponse{1, 99, []byte("entries")}},
		{"Metadata", AppendMetadata(nil, Metadata{2, []byte("t")}), "0701000002000000 74",
			func(p []byte) (any, error) { return ParseMetadata(p) }, Metadata{2, []byte("t")}},
		{"MetadataResponse", AppendMetadataResponse(nil, MetadataResponse{2, 1, []TopicInfo{{"t", 1, 2}}}),
			"0801010002000000 0100000000000000 0200000000000000 01 74",
			func(p []byte) (any, error) { return ParseMetadataResponse(p) }, MetadataResponse{2, 1, []TopicInfo{{"t", 1, 2}}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			want, err := hex.DecodeString(strings.ReplaceAll(tc.want, " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(tc.frame, want) {
				t.Fatalf("encodes to %x", tc.frame)
			}
			got, err := tc.parse(want)
			if err != nil || !reflect.DeepEqual(got, tc.value) {
				t.Fatalf("parses to %+v, %v", got, err)
			}
			if h, err := ParseHeader(want); err != nil || h.Kind.String() != tc.name {
				t.Errorf("header %+v, %v", h, err)
			}
			// Cut anywhere, a frame is refused or is another whole frame (its last
			// field runs to the end); it never panics.
			for n := range want {
				if _, err := tc.parse(want[:n]); err != nil && !errors.Is(err, ErrFrame) {
					t.Errorf("cut to %d: %v", n, err)
				}
			}
		})
	}
}

func TestSizes(t *testing.T) {
	infos := []TopicInfo{{"a", 1, 2}, {"bcd", 3, 4}}
	long := &Error{Text: strings.Repeat("é", 700)}
	for name, pair := range map[string][2]int{
		"Hello":            {HelloBytes, len(AppendHello(nil, Hello{}))},
		"Produce":          {ProduceHeaderBytes("topic"), len(AppendProduceHeader(nil, 1, "topic"))},
		"ProduceAck":       {AcksBytes(3), len(AppendAcks(nil, make([]Ack, 3)))},
		"Error":            {ErrorBytes(long), len(AppendError(nil, long))},
		"Fetch":            {FetchBytes(5), len(AppendFetch(nil, Fetch{Topic: []byte("topic")}))},
		"FetchResponse":    {FetchResponseHeaderBytes, len(AppendFetchResponseHeader(nil, 1, 1))},
		"Metadata":         {MetadataBytes(5), len(AppendMetadata(nil, Metadata{Topic: []byte("topic")}))},
		"MetadataResponse": {MetadataResponseBytes(infos), len(AppendMetadataResponse(nil, MetadataResponse{Topics: infos}))},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: said %d, has %d", name, pair[0], pair[1])
		}
	}
	if e, err := ParseError(AppendError(nil, long)); err != nil || len(e.Text) != 1024 {
		t.Errorf("long text: %v", err)
	}
}

func TestRefusedFrames(t *testing.T) {
	for _, tc := range []struct {
		name, text string
		err        error
	}{
		{"kind", "unknown kind 99", second(ParseHeader([]byte{99, 0, 0, 0, 0, 0, 0, 0}))},
		{"short", "every frame", second(ParseHeader([]byte{1}))},
		{"http", "not a Hello", second(ParseHello([]byte("GET / HTTP/1.1\r\n\r\n")))},
		{"role", "unknown role", second(ParseHello(AppendHello(nil, Hello{Version, 9, 0, 1})))},
		{"no topic", "a topic name of 0", second(ParseProduce(append(AppendProduceHeader(nil, 1, ""), 'x')))},
		{"topic beyond", "frame 1 more", second(ParseProduce([]byte{2, 9, 0, 0, 0, 0, 0, 0, 'x'}))},
		{"no batch", "without a batch", second(ParseProduce(AppendProduceHeader(nil, 1, "t")))},
		{"flags", "unknown flags", second(ParseProduce([]byte{2, 1, 1, 0, 0, 0, 0, 0, 't', 'x'}))},
		{"acks", "2 acknowledgements", second(ParseAcks(AppendAcks(nil, make([]Ack, 2))[:20]))},
		{"trailing", "behind a Fetch", second(ParseFetch(append(AppendFetch(nil, Fetch{Topic: []byte("t")}), 'x')))},
		{"topics", "of 7 topics", second(ParseMetadataResponse([]byte{8, 0, 7, 0, 0, 0, 0, 0}))},
		{"text", "not UTF-8", second(ParseError(append(AppendError(nil, &Error{}), 0xff)))},
	} {
		if !errors.Is(tc.err, ErrFrame) || !strings.Contains(tc.err.Error(), tc.text) {
			t.Errorf("%s: %v", tc.name, tc.err)
		}
	}
	// A newer peer is recognised by its version, whatever follows.
	h, err := ParseHello([]byte("\x01\x01\x07\x00\x00\x00\x00\x00MLRBfuture"))
	if err != nil || h.Version != 7 {
		t.Errorf("newer Hello: %+v, %v", h, err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestErrorIsItsCode(t *testing.T) {
	err := fmt.Errorf("producing: %w", &Error{Code: StorageFull, Text: "disk"})
	if !errors.Is(err, StorageFull) || errors.Is(err, StorageFailed) {
		t.Error("errors.Is does not find the code")
	}
	if err.Error() != "producing: storage full: disk" || Code(999).Error() != "error code 999" {
		t.Error(err, Code(999))
	}
	if StorageFull.MaybeStored() || !OutcomeUnknown.MaybeStored() {
		t.Error("MaybeStored")
	}
}

// FuzzParse: no bytes make a parser panic, and what parses is encoded again to
// the same bytes.
func FuzzParse(f *testing.F) {
	f.Add(AppendHello(nil, Hello{Version, RoleClient, 0, 1 << 20}))
	f.Add(append(AppendProduceHeader(nil, 7, "orders"), "batch"...))
	f.Add(AppendAcks(nil, []Ack{{7, 1000}, {8, 1001}}))
	f.Add(AppendError(nil, &Error{9, OffsetOutOfRange, 3, 5, "no"}))
	f.Add(AppendFetch(nil, Fetch{1, []byte("t"), 258, 65536, 500}))
	f.Add(append(AppendFetchResponseHeader(nil, 1, 99), "entries"...))
	f.Add(AppendMetadata(nil, Metadata{2, []byte("t")}))
	f.Add(AppendMetadataResponse(nil, MetadataResponse{2, 1, []TopicInfo{{"t", 1, 2}}}))
	f.Fuzz(func(t *testing.T, p []byte) {
		var again []byte
		if h, err := ParseHello(p); err == nil && h.Version == Version {
			again = AppendHello(nil, h)
			again = append(again[:4], append(bytes.Clone(p[4:8]), again[8:]...)...) // correlation means nothing
		}
		if v, err := ParseProduce(p); err == nil {
			again = append(AppendProduceHeader(nil, v.Correlation, string(v.Topic)), v.Batch...)
		}
		if v, err := ParseAcks(p); err == nil {
			var acks []Ack
			for i := range v.Len() {
				acks = append(acks, v.At(i))
			}
			again = append(bytes.Clone(p[:HeaderBytes]), AppendAcks(nil, acks)[HeaderBytes:]...)
		}
		if v, err := ParseError(p); err == nil {
			again = AppendError(nil, v)
			again[1] = p[1]
		}
		if v, err := ParseFetch(p); err == nil {
			again = AppendFetch(nil, v)
		}
		if v, err := ParseFetchResponse(p); err == nil {
			again = append(AppendFetchResponseHeader(nil, v.Correlation, v.HighWatermark), v.Entries...)
			copy(again, p[:4])
		}
		if v, err := ParseMetadata(p); err == nil {
			again = AppendMetadata(nil, v)
			copy(again[2:4], p[2:4])
		}
		if v, err := ParseMetadataResponse(p); err == nil {
			again = AppendMetadataResponse(nil, v)
		}
		if again != nil && !bytes.Equal(again, p) {
			t.Fatalf("%x became %x", p, again)
		}
	})
}
