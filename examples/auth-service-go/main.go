// An auth service that issues tickets by writing them to Redis; it never calls Tidings (docs/tickets.md, "Issued in Redis").
//
//	tidings dev --set backplane.kind=redis --set backplane.url=redis://127.0.0.1:6379
//	go run .
//	curl -d '{"user":"demo","password":"demo"}' http://127.0.0.1:9000/login
//
// The answer is {"ticket":"…"}: the page opens new WebSocket("ws://127.0.0.1:8080/ws?ticket=…"). REDIS_URL is the nodes'
// Redis (redis://127.0.0.1:6379 if unset; its user needs no more than +set on the tickets' keys), TIDINGS_PREFIX their
// [backplane] prefix (tidings:), LISTEN where this listens (127.0.0.1:9000).
package main

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/redis/go-redis/v9"
)

// life is how long the page has to connect: a node refuses tickets that live longer than 300 s.
const life = 30 * time.Second

// grant is a ticket at rest. There are more fields (docs/tickets.md); one that Tidings does not know spoils the ticket.
type grant struct {
	UserID    string   `json:"user_id"`
	Channels  []string `json:"channels,omitempty"`
	ExpiresAt int64    `json:"expires_at"`
}

type auth struct {
	redis  *redis.Client
	prefix string
}

func main() {
	log.SetFlags(0)
	options, err := redis.ParseURL(env("REDIS_URL", "redis://127.0.0.1:6379"))
	if err != nil {
		log.Fatal("REDIS_URL: ", err)
	}
	service := &auth{redis.NewClient(options), env("TIDINGS_PREFIX", "tidings:")}
	http.HandleFunc("POST /login", service.login)
	listen := env("LISTEN", "127.0.0.1:9000")
	log.Printf("POST http://%s/login", listen)
	log.Fatal(http.ListenAndServe(listen, nil))
}

func (a *auth) login(w http.ResponseWriter, r *http.Request) {
	var who struct{ User, Password string }
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4096)).Decode(&who); err != nil {
		http.Error(w, "send {\"user\":…,\"password\":…}", http.StatusBadRequest)
		return
	}
	// Your own check goes here.
	if who.User != "demo" || who.Password != "demo" {
		http.Error(w, "unknown user or wrong password", http.StatusUnauthorized)
		return
	}
	ticket, err := a.issue(r.Context(), "42")
	if err != nil {
		log.Print("redis: ", err)
		http.Error(w, "no tickets now", http.StatusServiceUnavailable)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	json.NewEncoder(w).Encode(map[string]string{"ticket": ticket})
}

// issue writes a ticket for a user. Redis gets only its hash: who reads there cannot connect.
func (a *auth) issue(ctx context.Context, user string) (string, error) {
	var random [32]byte
	rand.Read(random[:]) // never fails: it ends the program instead
	ticket := base64.RawURLEncoding.EncodeToString(random[:])
	hash := sha256.Sum256([]byte(ticket))
	key := a.prefix + "ticket:" + hex.EncodeToString(hash[:])
	value, err := json.Marshal(grant{UserID: user, ExpiresAt: time.Now().Add(life).UnixMilli()})
	if err != nil {
		return "", err
	}
	// go-redis sends a whole number of seconds as EX, which is the same.
	return ticket, a.redis.Set(ctx, key, value, life).Err()
}

func env(name, otherwise string) string {
	if value := os.Getenv(name); value != "" {
		return value
	}
	return otherwise
}
