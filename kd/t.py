import socket,json,threading,subprocess,time,os
d='/tmp/weft/n1/kd'
FIRST="00000000-0000-0000-0000-0000000000f1"
c=socket.socket(socket.AF_UNIX); c.bind(d+'/weftd.sock'); c.listen()
e=socket.socket(socket.AF_UNIX); e.bind(d+'/export.sock'); e.listen()
def ctl():
    while True:
        s,_=c.accept(); l=s.makefile().readline(); print('weftd asked',l)
        s.send((json.dumps({"id":1,"result":{"session":FIRST,"first":FIRST,"epoch":"7","path":d+'/export.sock'}})+'\n').encode())
threading.Thread(target=ctl,daemon=True).start()
h=subprocess.Popen(['/tmp/weft/t-K/debug/weft-holder','--run-dir',d],env={**os.environ,'WEFT_LOG':'debug'})
time.sleep(.5)
def ask(m,p):
    s=socket.socket(socket.AF_UNIX); s.connect(d+'/holder.sock'); s.send((json.dumps({"id":3,"method":m,"params":p})+'\n').encode()); return s.makefile().readline()
print(ask('open',{"id":"v","listen":d+"/g.sock","volume":"00000000-0000-0000-0000-00000000000a","session":FIRST,"snapshot":None,"writable":True}))
g=socket.socket(socket.AF_UNIX); g.connect(d+'/g.sock')
time.sleep(1)
print(ask('list',{}))
h.kill()
