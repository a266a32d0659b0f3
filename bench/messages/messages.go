// Package messages is where a benchmark's and the command line's messages come
// from: a file of one message per line, a size, or the sample.
package messages

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"

	"github.com/millrace/millrace/bench/sample"
)

const (
	// MaxMessageBytes bounds one line.
	MaxMessageBytes = 4 << 20
	// maxFileBytes bounds a file that a benchmark keeps in memory.
	maxFileBytes = 1 << 30
	// sizedMessages is how many different messages of one size there are.
	sizedMessages = 64
)

// ErrTooLong is for a line beyond MaxMessageBytes.
var ErrTooLong = fmt.Errorf("a line is longer than %d bytes", MaxMessageBytes)

// Scanner reads one message per line. The last line counts with or without its
// newline; an empty line is an empty message; nothing else is interpreted, a
// carriage return neither.
type Scanner struct{ s *bufio.Scanner }

// NewScanner reads from r.
func NewScanner(r io.Reader) *Scanner {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 64<<10), MaxMessageBytes+1)
	s.Split(func(data []byte, atEOF bool) (int, []byte, error) {
		if i := bytes.IndexByte(data, '\n'); i >= 0 {
			return i + 1, data[:i], nil
		}
		if atEOF && len(data) > 0 {
			return len(data), data, nil
		}
		return 0, nil, nil
	})
	return &Scanner{s}
}

// Scan goes to the next message; false at the end or on an error.
func (s *Scanner) Scan() bool { return s.s.Scan() }

// Bytes is the message, valid until the next Scan.
func (s *Scanner) Bytes() []byte { return s.s.Bytes() }

// Err is what ended the reading; nil at the end of the input.
func (s *Scanner) Err() error {
	if errors.Is(s.s.Err(), bufio.ErrTooLong) {
		return ErrTooLong
	}
	return s.s.Err()
}

// ReadFile reads all messages of a file.
func ReadFile(name string) ([][]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFileBytes+1))
	if err != nil {
		return nil, err
	}
	if len(b) > maxFileBytes {
		return nil, fmt.Errorf("%s is larger than %d bytes, which the benchmark would keep in memory: give it a part of the file", name, maxFileBytes)
	}
	var out [][]byte
	for len(b) > 0 {
		line, rest, _ := bytes.Cut(b, []byte("\n"))
		if len(line) > MaxMessageBytes {
			return nil, fmt.Errorf("%s, line %d: %w", name, len(out)+1, ErrTooLong)
		}
		out, b = append(out, line), rest
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s holds no messages: it needs one per line", name)
	}
	return out, nil
}

// OfSize makes messages of n random bytes each, always the same ones.
func OfSize(n int) [][]byte {
	r := rand.NewChaCha8([32]byte{1})
	out := make([][]byte, sizedMessages)
	for i := range out {
		out[i] = make([]byte, n)
		_, _ = r.Read(out[i]) // never fails
	}
	return out
}

// Load returns the messages of file, else of the size, else the sample.
func Load(file string, size int) ([][]byte, error) {
	switch {
	case file != "":
		return ReadFile(file)
	case size > 0:
		return OfSize(size), nil
	}
	return sample.Messages(), nil
}

// MeanBytes is the average length.
func MeanBytes(ms [][]byte) float64 {
	if len(ms) == 0 {
		return 0
	}
	total := 0
	for _, m := range ms {
		total += len(m)
	}
	return float64(total) / float64(len(ms))
}
