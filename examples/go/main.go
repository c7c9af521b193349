// An order service that tells its customer that an order was shipped.
//
//	go run . --user 42 --order 1001
//
// TIDINGS_ADDR is the service door of any node (127.0.0.1:8081 if unset), or dns:///a.name:8081 for all the nodes that the
// name has addresses of; TIDINGS_API_KEY a key with the scope push.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"log"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	tidings "example.com/orders/tidingsv1"
)

func main() {
	log.SetFlags(0)
	user := flag.String("user", "42", "whom to tell")
	order := flag.Int("order", 1001, "the order that was shipped")
	times := flag.Int("times", 1, "how many orders, one after another, each with the next number")
	every := flag.Duration("every", 0, "the pause between two of them")
	flag.Parse()

	// Plain text, as inside a private network. Across any other: credentials.NewTLS. With round_robin the calls go to every
	// node that the address stands for, and past one that is away; without it all of them go to one.
	conn, err := grpc.NewClient(env("TIDINGS_ADDR", "127.0.0.1:8081"),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig": [{"round_robin": {}}]}`))
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()

	client := tidings.NewNotificationClient(conn)
	for number := *order; number < *order+*times; number++ {
		answer, err := push(client, *user, event{Order: number, State: "shipped"})
		if err != nil {
			log.Fatalf("order %d: %v", number, err)
		}
		fmt.Printf("%s message=%s connections=%d\n", answer.Status, answer.MessageId, answer.LocalConnections)
		time.Sleep(*every)
	}
}

// event is what the customer's page gets, as JSON.
type event struct {
	Order int    `json:"order"`
	State string `json:"state"`
}

func push(client tidings.NotificationClient, user string, what event) (*tidings.PushResponse, error) {
	body, err := json.Marshal(what)
	if err != nil {
		return nil, err
	}
	// The deadline also tells the node how long it may try: it answers 50 ms before.
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	key := env("TIDINGS_API_KEY", "dev-key-not-for-production")
	ctx = metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+key)
	return client.PushNotification(ctx, &tidings.PushRequest{
		UserId: user,
		Body:   &tidings.PushRequest_Json{Json: string(body)},
	})
}

func env(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}
