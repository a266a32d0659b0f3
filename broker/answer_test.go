package broker_test

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"testing"

	"github.com/millrace/millrace/broker"
	"github.com/millrace/millrace/broker/wire"
	"github.com/millrace/millrace/netpoll"
	"github.com/millrace/millrace/serialize"
)

// readFrame and writeFrame move one message over a raw connection.
func readFrame(c net.Conn) ([]byte, error) {
	var n [4]byte
	if _, err := io.ReadFull(c, n[:]); err != nil {
		return nil, err
	}
	p := make([]byte, binary.BigEndian.Uint32(n[:]))
	_, err := io.ReadFull(c, p)
	return p, err
}

func writeFrame(c net.Conn, p []byte) error {
	_, err := c.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(p))), p...))
	return err
}

// A Produce that was answered with something else ended as if it had never been
// sent, though the broker may have stored it.
func TestProduceAnsweredByAnotherKindIsOutcomeUnknown(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() {
		served <- func() error {
			c, err := ln.Accept()
			if err != nil {
				return err
			}
			defer c.Close()
			_ = ln.Close()
			if _, err := netpoll.Handshake(c, 1<<20); err != nil {
				return err
			}
			if _, err := readFrame(c); err != nil {
				return err
			}
			if err := writeFrame(c, wire.AppendHello(nil, wire.Hello{Version: wire.Version, Role: wire.RoleBroker, Durability: 1, MaxFrameBytes: 1 << 20})); err != nil {
				return err
			}
			p, err := readFrame(c)
			if err != nil {
				return err
			}
			h, err := wire.ParseHeader(p)
			if err != nil || h.Kind != wire.KindProduce {
				return errors.Join(err, errors.New("no Produce came"))
			}
			if err := writeFrame(c, wire.AppendFetchResponseHeader(nil, h.Correlation, 1)); err != nil {
				return err
			}
			_, _ = io.Copy(io.Discard, c)
			return nil
		}()
	}()
	c, err := broker.Connect(within(t), broker.ClientConfig{URL: "tcp://" + ln.Addr().String(), Pool: memory(t, 16<<20), Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.Produce(within(t), "t", &serialize.Record{Value: []byte("hello")})
	if !errors.Is(err, wire.OutcomeUnknown) {
		t.Errorf("Produce: %v", err)
	}
	if err := c.Close(within(t)); err != nil {
		t.Error(err)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}
