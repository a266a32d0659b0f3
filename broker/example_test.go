package broker_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/millrace/millrace/broker"
	"github.com/millrace/millrace/serialize"
)

// A storage broker inside another program, and a client of it.
func Example() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	dir, err := os.MkdirTemp("", "millrace")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)

	server, err := broker.NewServer(broker.Config{DataDir: dir, Listen: []string{"tcp://127.0.0.1:0"}})
	if err != nil {
		log.Fatal(err)
	}
	defer server.Shutdown(ctx)
	if err := server.Start(); err != nil {
		log.Fatal(err)
	}

	client, err := broker.Connect(ctx, broker.ClientConfig{URL: server.URLs()[0]})
	if err != nil {
		log.Fatal(err)
	}
	defer client.Close(ctx)
	for _, grain := range []string{"rye", "wheat", "oats"} {
		offset, err := client.Produce(ctx, "grist", &serialize.Record{Value: []byte(grain)})
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("stored", grain, "at", offset)
	}
	err = client.Consume(ctx, "grist", 1, func(offset uint64, r *serialize.Record) error {
		fmt.Printf("read %s at %d\n", r.Value, offset)
		if offset == 2 {
			return broker.ErrStop
		}
		return nil
	})
	if err != nil {
		log.Fatal(err)
	}
	// Output:
	// stored rye at 0
	// stored wheat at 1
	// stored oats at 2
	// read wheat at 1
	// read oats at 2
}
