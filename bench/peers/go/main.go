// A TCP proxy as one writes it in Go: io.Copy both ways, half-close passed on. On Linux io.Copy
// between two TCP connections uses splice(2) by itself. Started and measured by `corelay-bench compare`.
//
//	peer-go-copy LISTEN=SERVER [LISTEN=SERVER ...]
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strings"
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "--version" {
		fmt.Println(runtime.Version())
		return
	}
	if len(os.Args) < 2 {
		fail("usage: peer-go-copy LISTEN=SERVER ...")
	}
	for _, route := range os.Args[1:] {
		listen, server, ok := strings.Cut(route, "=")
		if !ok {
			fail("no = in " + route)
		}
		listener, err := net.Listen("tcp", listen)
		if err != nil {
			fail(err.Error())
		}
		go accept(listener, server)
	}
	select {}
}

func accept(listener net.Listener, server string) {
	for {
		downstream, err := listener.Accept()
		if err != nil {
			fail(err.Error())
		}
		go relay(downstream.(*net.TCPConn), server)
	}
}

func relay(downstream *net.TCPConn, server string) {
	defer downstream.Close()
	connection, err := net.Dial("tcp", server)
	if err != nil {
		downstream.SetLinger(0)
		return
	}
	upstream := connection.(*net.TCPConn)
	defer upstream.Close()
	done := make(chan error, 2)
	go copyOneWay(upstream, downstream, done)
	go copyOneWay(downstream, upstream, done)
	// A direction that fails ends the session; one that ends in order leaves the other running.
	if <-done == nil {
		<-done
	}
}

func copyOneWay(to, from *net.TCPConn, done chan<- error) {
	_, err := io.Copy(to, from)
	if err == nil {
		err = to.CloseWrite()
	}
	done <- err
}

func fail(why string) {
	fmt.Fprintln(os.Stderr, "peer-go-copy:", why)
	os.Exit(1)
}
